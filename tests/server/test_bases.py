"""What can't be served is refused by name, before vLLM is imported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from shop import BASE

from server import preflight
from server.bases import HEAD_SIZES
from server.errors import ModelNotFound, ModelUnsupported
from server.settings import Settings

Check = Callable[..., None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(BASE, folder)
    return folder


def set_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    def run(model: Path, quantization: str = "bitsandbytes", *, on_processor: bool = True) -> None:
        monkeypatch.setattr(preflight, "is_cpu_build", lambda: on_processor)
        preflight.check_model(Settings(model=str(model), quantization=quantization))

    return run


def test_a_model_folder_needs_a_config_with_an_architecture_and_safetensors(
    model: Path, check: Check
) -> None:
    check(model)
    weights = (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match=r"pickled.*\(base_unsupported\)"):
        check(model)
    weights.unlink()
    with pytest.raises(ModelNotFound, match=r"holds no \*\.safetensors"):
        check(model)
    for content in ("{}", "[]", "{", ""):
        (model / "config.json").write_text(content)
        with pytest.raises(ModelNotFound, match=r"config\.json"):
            check(model)
    with pytest.raises(ModelNotFound, match=r"no such folder.*\(base_not_found\)"):
        check(model / "nowhere")


@pytest.mark.parametrize("architecture", ["BertModel", "Qwen2ForSequenceClassification"])
def test_a_model_that_generates_no_text_is_refused(
    model: Path, architecture: str, check: Check
) -> None:
    set_config(model, architectures=[architecture])
    with pytest.raises(ModelUnsupported, match=f"{architecture} is not a model that generates"):
        check(model)


def test_a_mixture_of_experts_is_refused_in_nf4_on_a_processor_only(
    model: Path, check: Check
) -> None:
    set_config(model, architectures=["Qwen3MoeForCausalLM"], num_experts=8)
    check(model, "none")
    check(model, on_processor=False)
    with pytest.raises(ModelUnsupported, match="serve it with --quantization none"):
        check(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 16}, "attention heads of 16"),
        ({"head_dim": None, "num_attention_heads": 2, "hidden_size": 80}, "heads of 40"),
        ({"head_dim": 80, "partial_rotary_factor": 0.25}, "rotates 20 of the 80"),
        ({"head_dim": 32, "rope_parameters": {"partial_rotary_factor": 0.75}}, "rotates 24 of"),
        ({"text_config": {"head_dim": 8}}, "attention heads of 8"),
        ({"text_config": "x", "head_dim": 8}, "attention heads of 8"),
        ({"head_dim": 8, "partial_rotary_factor": float("nan")}, "attention heads of 8"),
    ],
)
def test_attention_that_a_processor_lacks_is_refused_there(
    model: Path, changes: dict[str, Any], words: str, check: Check
) -> None:
    set_config(model, **changes)
    check(model, on_processor=False)
    with pytest.raises(ModelUnsupported, match=words):
        check(model)


def test_heads_and_rotations_of_known_families_pass(model: Path, check: Check) -> None:
    for width, share in (
        (64, float("nan")),
        (64, 1.0),
        (128, 0.75),
        (96, 1.0),
        (80, 0.4),
        (256, 0.5),
        (64, 0.25),
    ):
        set_config(model, head_dim=width, partial_rotary_factor=share)
        check(model)


@pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn
def test_the_head_sizes_are_those_of_vllm() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_a_base_without_any_layer_to_adapt_is_refused(model: Path, check: Check) -> None:
    set_config(model, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    save_file({"h.0.attn.c_attn.weight": np.zeros((4, 4))}, model / "model.safetensors")
    with pytest.raises(ModelUnsupported, match="GPT2LMHeadModel"):
        check(model)


def test_a_damaged_weights_file_is_named(model: Path, check: Check) -> None:
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelUnsupported, match=r"model\.safetensors"):
        check(model)
