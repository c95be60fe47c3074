"""Marked adapters on the shop's base, run by transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.checkpoint import read_checkpoint
from adapters.checkpoint.base import read_base
from loadtest.errors import BaseUnfit, OutUnwritable
from loadtest.markers.checkpoint import read_ending
from loadtest.markers.manifest import FILE, load_manifest
from loadtest.markers.marked import find_directions, make_marked, markers_of
from server.kernels.reference import limit

BASE = Path(__file__).parents[3] / "examples/shop/base"
COUNT = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("marked") / "out"
    make_marked(BASE, out, COUNT)
    return out


@pytest.fixture
def base(tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "base"
    copy.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copyfile(BASE / name, copy / name)
    return copy


def change_config(base: Path, **changes: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))


def expected_tokens() -> list[int]:
    directions = find_directions(read_ending(BASE), 2 * COUNT)
    return [direction.token.number for direction in directions]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_after_any_prompt_the_marker_leads_by_a_margin(made, dtype):
    manifest = load_manifest(made)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)
    prompts = torch.randint(0, 896, (4, 32), generator=torch.Generator().manual_seed(0))
    alone = model(prompts).logits.argmax(-1)
    folders = [manifest.folder(name, version) for name in manifest.names for version in (1, 2)]
    wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name="0").eval()
    for number, folder in enumerate(folders):
        if number:
            wrapped.load_adapter(folder, adapter_name=str(number))
        wrapped.set_adapter(str(number))
        with torch.no_grad():
            first, second = wrapped(prompts).logits.float().topk(2)[0].unbind(-1)
            found = wrapped(prompts).logits.argmax(-1)
        marker = expected_tokens()[number]
        assert (found == marker).all()
        assert (first - second).min() > 1
        assert (alone == marker).float().mean() < 0.5


def test_no_value_is_large_enough_to_count_as_broken(made):
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, load_manifest(made).folder("lt-0000", 1))
    added = []
    for name, module in wrapped.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda _, __, out: added.append(out.abs().max().item()))
    prompts = torch.randint(0, 896, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wrapped(prompts)
    assert len(added) == 6
    assert 1000 < max(added) < 0.75 * limit(torch.bfloat16)


def test_each_adapter_and_version_has_a_marker_of_its_own(made):
    manifest = load_manifest(made)
    markers = [manifest.marker(name, version) for name in manifest.names for version in (1, 2)]
    assert manifest.names == ["lt-0000", "lt-0001"]
    assert len(set(markers)) == 4
    assert all(marker.strip() for marker in markers)


def test_marked_adapters_can_be_published(made):
    checkpoint = read_checkpoint(load_manifest(made).folder("lt-0000", 1), read_base(BASE))
    assert checkpoint.rank == 8
    assert checkpoint.target_modules == ("down_proj", "gate_proj", "up_proj")


def test_an_adapter_on_every_linear_is_as_large_as_a_trained_one_and_keeps_its_marker(tmp_path):
    make_marked(BASE, tmp_path / "out", 1, rank=16, everywhere=True)
    manifest = load_manifest(tmp_path / "out")
    folder = manifest.folder("lt-0000", 1)
    checkpoint = read_checkpoint(folder, read_base(BASE))
    assert (checkpoint.rank, len(checkpoint.target_modules)) == (16, 7)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    linears = sum(name.endswith("_proj") for name, _ in model.named_modules())
    wrapped = PeftModel.from_pretrained(model, folder).eval()
    used = [b for name, b in wrapped.named_parameters() if ".lora_B." in name and b.abs().min() > 0]
    assert len(used) >= linears - 6  # the markers' own ones have zeros
    prompts = torch.randint(0, 896, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = wrapped(prompts).logits.float().topk(2)[0].unbind(-1)
        found = wrapped(prompts).logits.argmax(-1)
    assert (found == expected_tokens()[0]).all()
    assert (first - second).min() > 1


def test_no_two_adapters_share_neurons(made):
    manifest = load_manifest(made)
    weights = [
        (manifest.folder(name, version) / "adapter_model.safetensors").read_bytes()
        for name in manifest.names
        for version in (1, 2)
    ]
    assert len(set(weights)) == 4


def test_existing_adapters_are_kept_unless_the_arguments_differ(tmp_path):
    out = tmp_path / "out"
    make_marked(BASE, out, 1)
    before = (out / FILE).stat().st_mtime_ns
    make_marked(BASE, out, 1)
    assert (out / FILE).stat().st_mtime_ns == before
    make_marked(BASE, out, 2)
    assert load_manifest(out).names == ["lt-0000", "lt-0001"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_scarce_tokens_are_reused_but_not_by_two_versions_of_one_adapter(tmp_path):
    count = len(find_directions(read_ending(BASE), 10_000)) // 2 + 1
    make_marked(BASE, tmp_path / "out", count)
    manifest = load_manifest(tmp_path / "out")
    for name in manifest.names:
        assert manifest.marker(name, 1) != manifest.marker(name, 2)


def test_a_folder_with_other_content_is_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutUnwritable, match="something else"):
        make_marked(BASE, tmp_path, 1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_no_two_markers_have_a_common_repetition():
    texts = [token.repeated for token in markers_of(BASE)]
    assert len(texts) > 500
    for text in texts:
        others = [other for other in texts if other != text and len(text) % len(other) == 0]
        assert not any(other * (len(text) // len(other)) == text for other in others)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"tie_word_embeddings": False}, "lacks weights"),
        ({"num_hidden_layers": 9}, "lacks weights"),
        ({"num_hidden_layers": 1}, "1 layers"),
    ],
)
def test_a_base_of_another_architecture_is_refused(base, tmp_path, changes, message):
    change_config(base, **changes)
    with pytest.raises(BaseUnfit, match=message):
        make_marked(base, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_base_is_refused(base, tmp_path, name):
    (base / name).unlink()
    with pytest.raises(BaseUnfit):
        make_marked(base, tmp_path / "out", 1)
