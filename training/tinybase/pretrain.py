"""Pretraining from scratch: examples made on the fly, loss on the answers alone.

It knows the corpus and the model's shape; it writes no file and prints nothing.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.tinybase.corpus import write_example
from training.tinybase.rounding import nf4_rounded

IGNORED = -100
# Batches are cut from a pool sorted by length, so that little is spent on padding.
POOLED_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length, batch size and learning rates of a run."""

    seed: int
    steps: int
    batch_size: int = 64
    learning_rate: float = 4e-3
    warmup_steps: int = 60
    weight_decay: float = 0.02
    # From this share of the run on, the model is trained as it will be served: rounded to NF4.
    nf4_from: float = 0.75

    def rate(self, step: int) -> float:
        """The share of the learning rate at `step`: linear warm-up, then cosine to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run; `loss` is the mean since the last report."""

    step: int
    loss: float
    tokens: int
    seconds: float


def new_model(seed: int, vocabulary_size: int, pad: int, end: int) -> LlamaForCausalLM:
    """An untrained base; sizes are multiples of 64, as NF4 blocks and CPU kernels require."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=None,
            eos_token_id=end,
            use_cache=True,
        )
    )


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    schedule: Schedule,
    report: Callable[[Progress], None],
    report_every: int = 50,
) -> Progress:
    """Train in place; the same schedule and thread count give the same weights."""
    matrices = hidden_matrices(model)
    optimizers = _optimizers(model, matrices, schedule)
    started = time.perf_counter()
    tokens, losses = 0, []
    progress = Progress(0, math.nan, 0, 0.0)
    model.train()
    for step, (inputs, labels) in enumerate(batches(tokenizer, schedule)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * schedule.rate(step)
        with nf4_rounded(matrices if step >= schedule.nf4_from * schedule.steps else []):
            loss = _answer_loss(model, inputs, labels)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += inputs.numel()
        losses.append(loss.item())
        if (step + 1) % report_every == 0 or step + 1 == schedule.steps:
            elapsed = time.perf_counter() - started
            progress = Progress(step + 1, sum(losses) / len(losses), tokens, elapsed)
            losses.clear()
            report(progress)
    return progress


def batches(
    tokenizer: PreTrainedTokenizerFast, schedule: Schedule
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, labels) for every step; padding sits on the right and is never scored."""
    size = schedule.batch_size
    for first in range(0, schedule.steps, POOLED_BATCHES):
        count = min(POOLED_BATCHES, schedule.steps - first)
        indexes = range(first * size, (first + count) * size)
        pool = sorted((_encode(tokenizer, schedule.seed, i) for i in indexes), key=_length)
        groups = [pool[i * size : (i + 1) * size] for i in range(count)]
        random.Random(f"{schedule.seed}:{first}").shuffle(groups)
        for group in groups:
            yield _pad(group, tokenizer.pad_token_id)


def _length(encoded: tuple[list[int], int]) -> int:
    return len(encoded[0])


def _encode(tokenizer: PreTrainedTokenizerFast, seed: int, index: int) -> tuple[list[int], int]:
    example = write_example(seed, index)
    messages = example.messages()
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer.encode(example.answer, add_special_tokens=False)
    return [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def _pad(batch: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in batch)
    inputs = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), IGNORED)
    for row, (ids, scored_from) in enumerate(batch):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, scored_from : len(ids)] = torch.tensor(ids[scored_from:])
    return inputs, labels


def _answer_loss(model: LlamaForCausalLM, inputs: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, 1:]
    scored = targets != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(states[:, :-1][scored])
    return torch.nn.functional.cross_entropy(logits.float(), targets[scored])


def hidden_matrices(model: LlamaForCausalLM) -> list[torch.nn.Parameter]:
    """The weights of the linear layers, which Muon trains and NF4 rounds."""
    named = model.named_parameters()
    return [p for name, p in named if p.ndim == 2 and "embed" not in name and "head" not in name]


def _optimizers(
    model: LlamaForCausalLM, matrices: list[torch.nn.Parameter], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
