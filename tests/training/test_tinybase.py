"""The tiny base's builder, for a few steps: what it writes, and that it writes it again."""

import hashlib
import math
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.shop.dataset import ADAPTERS, exchanges
from training.tinybase.build import write_model
from training.tinybase.corpus import write_example
from training.tinybase.pretrain import (
    IGNORED,
    Progress,
    Schedule,
    batches,
    new_model,
    pretrain,
)
from training.tinybase.rounding import nf4_rounded, round_to_nf4
from training.tinybase.tokenizer import build_tokenizer

SHIPPED = Path("examples/shop/base")


def test_the_builder_writes_a_model_a_tokenizer_and_a_card(tiny_base: Path) -> None:
    assert {path.name for path in tiny_base.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    digest = hashlib.sha256((tiny_base / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (tiny_base / "README.md").read_text()


@pytest.mark.slow
def test_the_same_schedule_gives_the_same_bytes(
    tiny_base: Path, short_schedule: Schedule, tmp_path: Path
) -> None:
    reports: list[Progress] = []
    tokenizer = build_tokenizer(0, 896)
    model = new_model(0, 896, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pretrain(model, tokenizer, short_schedule, reports.append)
    write_model(tmp_path, model, tokenizer)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (tiny_base / name).read_bytes(), name
    assert [report.step for report in reports] == [2]
    assert math.isfinite(reports[0].loss)


def test_sizes_suit_nf4_blocks_and_the_cpu_kernels(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert model.dtype == torch.bfloat16
    assert 1e6 < model.num_parameters() < 3e6
    assert model.config.head_dim in (32, 64, 128)
    assert model.config.hidden_size % 64 == 0
    assert model.config.intermediate_size % 64 == 0
    assert sum(path.stat().st_size for path in tiny_base.iterdir()) < 8 << 20


def test_only_answers_are_scored_and_each_ends_with_the_end_token() -> None:
    tokenizer = build_tokenizer(0, 896)
    inputs, labels = next(batches(tokenizer, Schedule(seed=5, steps=1, batch_size=3)))
    answers = {write_example(5, index).answer for index in range(3)}
    for ids, scored in zip(inputs, labels, strict=True):
        kept = scored[scored != IGNORED]
        assert kept[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(kept[:-1]) in answers
        assert torch.equal(ids[scored != IGNORED], kept)


def test_examples_depend_on_seed_and_number_alone() -> None:
    numbers = random.sample(range(1000), 20)
    assert [write_example(1, i) for i in numbers] == [write_example(1, i) for i in numbers]
    assert write_example(1, 3) != write_example(2, 3)


@pytest.mark.slow
def test_adapters_need_no_token_that_the_base_has_never_written() -> None:
    tokenizer = build_tokenizer(0, 896)
    written = {t for i in range(5000) for t in tokenizer.encode(write_example(0, i).answer)}
    for adapter in ADAPTERS:
        for _, answer in islice(exchanges(adapter, "train"), 500):
            assert written.issuperset(tokenizer.encode(answer)), answer


def test_nf4_rounding_is_the_one_of_bitsandbytes() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.allclose(round_to_nf4(weight), dequantize_4bit(packed, state), atol=1e-6)


def test_rounded_weights_are_put_back_and_gradients_reach_them() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 64))
    exact = weight.detach().clone()
    with nf4_rounded([weight]):
        assert not torch.equal(weight, exact)
        weight.sum().backward()
    assert torch.equal(weight, exact)
    assert weight.grad is not None


def test_the_command_explains_itself() -> None:
    command = [sys.executable, "-m", "training.tinybase", "--help"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "--steps" in printed


def test_the_shipped_base_is_what_its_card_says_and_fits_the_builder() -> None:
    card = (SHIPPED / "README.md").read_text()
    digest = hashlib.sha256((SHIPPED / "model.safetensors").read_bytes()).hexdigest()
    assert digest in card
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8 << 20
    shipped = AutoTokenizer.from_pretrained(SHIPPED)
    built = build_tokenizer(0, 896)
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
