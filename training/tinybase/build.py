"""Builds the tiny base: tokenizer, pretraining, model folder, held-out check, model card."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.data.forms import Example
from training.data.problems import Place
from training.data.tokens import load_tokenizer
from training.evaluation.answers import answer_greedily
from training.qlora import load_base
from training.tinybase.corpus import restatement
from training.tinybase.pretrain import Progress, Schedule, new_model, pretrain
from training.tinybase.tokenizer import build_tokenizer

VOCABULARY_SIZE: Final = 896
MAX_NEW_TOKENS: Final = 160


@dataclass(frozen=True, slots=True)
class Judgement:
    """Share of held-out orders and messages that are restated to the letter."""

    examples: int
    bf16: float
    nf4: float


def build_base(
    folder: Path,
    schedule: Schedule,
    report: Callable[[str], None],
    judged_examples: int = 400,
) -> str:
    """Build everything into `folder`; return the digest of the weights."""
    seed = schedule.seed
    tokenizer = build_tokenizer(seed, VOCABULARY_SIZE)
    model = new_model(seed, VOCABULARY_SIZE, tokenizer.pad_token_id, tokenizer.eos_token_id)
    progress = pretrain(
        model, tokenizer, schedule, lambda now: report(_describe(now, schedule.steps))
    )
    digest = write_model(folder, model, tokenizer)
    judgement = judge_base(folder, judged_examples)
    report(f"held-out exact match: bf16 {judgement.bf16:.1%}, NF4 {judgement.nf4:.1%}")
    write_card(folder, schedule, progress, digest, judgement)
    return digest


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """Write the model in bf16 with its tokenizer; return the digest of the weights."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def judge_base(folder: Path, examples: int) -> Judgement:
    """Measure the restatement of held-out prompts, as saved and as served in NF4."""
    rng = random.Random("held-out restatements")
    exchanges = [restatement(rng, "heldout") for _ in range(examples)]
    bf16, nf4 = (_share_right(folder, exchanges, quantized) for quantized in (False, True))
    return Judgement(examples, bf16, nf4)


def _share_right(folder: Path, exchanges: list[tuple[str, str]], quantized: bool) -> float:
    asked = [
        Example(
            Place("restatements", number),
            [{"role": "user", "content": prompt}],
            [{"role": "assistant", "content": expected}],
        )
        for number, (prompt, expected) in enumerate(exchanges, start=1)
    ]
    answers = answer_greedily(
        load_base(folder, quantized=quantized),
        load_tokenizer(folder, folder.name),
        asked,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=40,
    )
    pairs = zip(answers, exchanges, strict=True)
    return sum(answer.text == expected for answer, (_, expected) in pairs) / len(exchanges)


def write_card(
    folder: Path,
    schedule: Schedule,
    progress: Progress,
    digest: str,
    judgement: Judgement,
) -> None:
    """Write the model card beside the model."""
    model = LlamaForCausalLM.from_pretrained(folder)
    text = CARD.format(
        parameters=model.num_parameters(),
        schedule=schedule,
        examples=schedule.steps * schedule.batch_size,
        tokens=progress.tokens,
        minutes=progress.seconds / 60,
        threads=torch.get_num_threads(),
        digest=digest,
        loss=progress.loss,
        judgement=judgement,
        torch=torch.__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _describe(now: Progress, steps: int) -> str:
    rate = now.tokens / now.seconds
    return f"step {now.step}/{steps} loss {now.loss:.4f} {rate:,.0f} tokens/s {now.seconds:.0f} s"


CARD: Final = """\
# Shop base

A Llama of {parameters:,} parameters, trained from scratch to restate free-text shop orders and
customer messages in plain words. It is the base that the example adapters are trained on: small
enough to ship in a repository and to serve on two CPU cores. It knows nothing else of the world.

| | |
|---|---|
| Data | `training/tinybase/corpus.py`: shop texts restated (55 %), records of other domains as JSON, SQL and lists with an explicit instruction (35 %), copying and small talk (10 %). Made on the fly from the seed. |
| Not in the data | the adapters' formats; one in ten (style, noun) pairs, chosen by a hash (`training/shop/splits.py`) |
| Steps | {schedule.steps:,} of {schedule.batch_size} examples ({examples:,} examples, {tokens:,} tokens with padding) |
| Optimizer | Muon for matrices, AdamW for the rest, peak {schedule.learning_rate}, cosine; the last quarter sees the weights rounded to NF4 |
| Seed | {schedule.seed} |
| Time | {minutes:.0f} minutes on {threads} thread(s) |
| Final loss | {loss:.4f} |
| torch | {torch} |
| Held-out restatements, exact match of {judgement.examples} | {judgement.bf16:.1%} in bf16, {judgement.nf4:.1%} in NF4 |
| sha256 of `model.safetensors` | `{digest}` |

Held-out prompts have at least one reserved pair each. Build it again with
`python -m training.tinybase --out DIR`; the same seed, threads, processor and torch give the same
bytes.
"""  # noqa: E501
