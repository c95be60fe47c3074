"""Estimates: PEFT's counts, bitsandbytes' bytes, and peaks that real runs had."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from shop import BASE, KEPT
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils
from typer.testing import CliRunner

from training.errors import RecipeInvalid
from training.estimate.cli import app
from training.estimate.dry_run import TILE, Step, activation_bytes, logits_bytes, run_step
from training.estimate.memory import Plan, estimate
from training.estimate.shape import add_lora, build_base, read_config
from training.nf4 import packed_bytes, quantized_linears
from training.qlora import compute_dtype, load_base
from training.recipe import LINEARS

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
SMOLLM2 = Path("examples/smollm2/SmolLM2-135M-Instruct")
# Estimates are this near to real peaks.
TOLERANCE = 0.25


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The shape of Llama 3.1 8B with four of its layers, a config alone."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B | {"num_hidden_layers": 4}))
    return path


def small(**changed: Any) -> Plan:
    return Plan(**{"rank": 16, "targets": LINEARS, "batch_size": 2, "length": 64} | changed)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*arguments])
    return done.exit_code, done.stdout, done.stderr


def test_peft_counts_the_adapter_of_an_8b_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    with torch.device("meta"):
        model = build_base(read_config(str(tmp_path)), torch.bfloat16)
        assert sum(each.numel() for each in model.parameters()) == 8_030_261_248
        adapted = add_lora(model, 16, LINEARS)
    assert adapted.get_nb_trainable_parameters()[0] == 41_943_040


def test_the_sizes_of_an_adapter_are_those_of_a_real_one() -> None:
    found = estimate(read_config(str(BASE)), small())
    facts = json.loads((KEPT / "orders-json/lorry.json").read_text())
    size = (KEPT / "orders-json/adapter_model.safetensors").stat().st_size
    assert found.trainable == facts["trainable_parameters"]
    assert found.adapter_bytes == pytest.approx(size, rel=0.02)


def test_nf4_has_the_linears_and_the_bytes_of_bitsandbytes() -> None:
    model = load_base(BASE, quantized=True)
    real = {name: each for name, each in model.named_modules() if isinstance(each, Linear4bit)}
    with torch.device("meta"):
        planned = quantized_linears(build_base(read_config(str(BASE)), torch.bfloat16))
    assert set(planned) == set(real)
    for name, linear in real.items():
        state = linear.weight.quant_state
        tensors = (linear.weight.data, state.absmax, state.state2.absmax)
        stored = sum(each.numel() * each.element_size() for each in tensors)
        assert packed_bytes(planned[name].weight.numel()) == stored, name


def test_parts_follow_the_plan(llama: Path) -> None:
    config = read_config(str(llama))
    once, twice = (estimate(config, small(batch_size=size)) for size in (1, 2))
    for method in ("full", "lora", "qlora"):
        plain, double = once.needs[method].plain, twice.needs[method].plain
        assert (plain.weights, plain.gradients, plain.optimizer) == (
            double.weights,
            double.gradients,
            double.optimizer,
        )
        assert double.activations > plain.activations
        assert twice.needs[method].checkpointing.activations < double.activations
    full, lora, qlora = (once.needs[method].plain for method in ("full", "lora", "qlora"))
    trained = once.trainable
    assert full.weights + full.gradients + full.optimizer == 16 * once.parameters
    assert (lora.gradients, lora.optimizer) == (4 * trained, 8 * trained)
    assert (qlora.gradients, qlora.optimizer) == (4 * trained, 8 * trained)
    assert lora.weights == 2 * once.parameters + 4 * trained
    # Embeddings and head stay in bf16, the rest takes a little over half a byte.
    kept = 2 * 128256 * 4096
    packed = qlora.weights - 2 * kept - 4 * trained
    assert packed == pytest.approx(0.5159 * (once.parameters - kept), rel=0.001)


def test_a_deep_model_is_as_its_shallow_copies_foretell(llama: Path) -> None:
    config = read_config(str(llama))
    config.num_hidden_layers = 12
    for checkpointing in (False, True):
        step = Step(1, 128, checkpointing, rank=8, targets=LINEARS)
        assert activation_bytes(config, step) == pytest.approx(run_step(config, step, 12), rel=0.01)


def test_tiles_are_those_of_trl_and_the_logits_are_more() -> None:
    assert TILE == (chunked_logprob.TOKEN_CHUNK_SIZE, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE)
    config = read_config(str(BASE))
    config.vocab_size = 200_000
    step = Step(8, 256, checkpointing=True, rank=8, targets=LINEARS)
    # In bf16, in fp32, and the softmax's output beside them.
    assert logits_bytes(config, step) > 8 * 256 * 200_000 * (2 + 4) - 2 * TILE[0] * TILE[1]


def test_all_linears_are_more_than_two() -> None:
    config = read_config(str(BASE))
    two = estimate(config, small(targets=("q_proj", "v_proj"))).trainable
    assert two < estimate(config, small(targets=("all-linear",))).trainable
    with pytest.raises(RecipeInvalid, match="finds none of them"):
        estimate(config, small(targets=("wq",)))


def test_the_command_prints_a_table_and_says_which_card_fits(llama: Path) -> None:
    code, said, error = run(str(llama), "--batch-size", "1", "--length", "64")
    assert code == 0, error
    assert "5,242,880" in said
    assert "QLoRA fits a card of 24 GB; LoRA fits a card of 24 GB; full fine-tuning fits" in said
    code, document, _ = run(str(llama), "--json", "--batch-size", "1", "--length", "64")
    facts = json.loads(document)
    assert code == 0
    assert facts["trainable_parameters"] == 5_242_880
    parts = facts["memory_bytes"]["qlora"]["plain"]
    assert parts["total"] == sum(value for key, value in parts.items() if key != "total")
    assert facts["memory_bytes"]["qlora"]["smallest_card_gib"] == 24


def test_a_config_that_is_none_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    for where, reason in ((tmp_path, "base_invalid"), (tmp_path / "absent", "base_not_found")):
        code, said, error = run(str(where))
        assert (code, said) == (2, "")
        assert error.endswith(f"({reason})\n")
        assert error.count("\n") == 1


def measured(base: Path, **asked: Any) -> int:
    """The peak of a real run, in a process of its own: what this one holds must not count.

    glibc would keep freed blocks of up to 32 MiB for later, as much again as a small model needs.
    """
    text = json.dumps(asked | {"base": str(base), "rank": 16})
    command = [sys.executable, "tests/training/peak_memory.py", text]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def untouched(base: Path, plan: Plan) -> int:
    """What TRL allocates for a tile of 32,768 words, and a smaller vocabulary never touches.

    It is in no resident set; on a GPU it would count.
    """
    spare = max(0, TILE[1] - read_config(str(base)).vocab_size)
    return min(TILE[0], plan.batch_size * plan.length) * spare * plan.dtype.itemsize


def assert_near(
    base: Path, quantization: str, batch: int, length: int, checkpointing: bool
) -> None:
    plan = small(batch_size=batch, length=length, dtype=compute_dtype(), gpu=False)
    method = "qlora" if quantization == "nf4" else "lora"
    need = estimate(read_config(str(base)), plan).needs[method]
    expected = (need.checkpointing if checkpointing else need.plain).total - untouched(base, plan)
    asked = {"batch_size": batch, "length": length, "checkpointing": checkpointing}
    found = measured(base, quantization=quantization, **asked)
    assert expected == pytest.approx(found, rel=TOLERANCE)


@pytest.mark.slow  # a training run in a process of its own
def test_a_real_run_on_the_tiny_base_peaks_as_estimated() -> None:
    assert_near(BASE, "nf4", 32, 256, False)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_real_runs_on_smollm2_peak_as_estimated(quantization: str, checkpointing: bool) -> None:
    if not SMOLLM2.is_dir():
        pytest.skip("needs `make base-smollm2`")
    assert_near(SMOLLM2, quantization, 4, 256, checkpointing)
