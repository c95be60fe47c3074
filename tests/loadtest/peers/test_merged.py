"""A merged model answers like the base with its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loadtest.markers.manifest import load_manifest
from loadtest.markers.marked import make_marked
from loadtest.peers.merged import write_merged

BASE = Path(__file__).parents[3] / "examples/shop/base"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    out = tmp_path_factory.mktemp("marked") / "out"
    make_marked(BASE, out, 1)
    return load_manifest(out).folder("lt-0000", 1)


def test_a_merged_model_answers_like_the_base_with_the_adapter(adapter, tmp_path):
    write_merged(BASE, adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    prompts = torch.arange(64).view(2, 32)
    with torch.no_grad():
        found = merged(prompts).logits
        alone = base(prompts).logits.argmax(-1)
        wanted = PeftModel.from_pretrained(base, adapter)(prompts).logits
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))
    assert not torch.equal(found.argmax(-1), alone)


def test_other_files_than_the_weights_are_links_to_the_base(adapter, tmp_path):
    write_merged(BASE, adapter, tmp_path / "out")
    assert (tmp_path / "out/config.json").resolve() == BASE / "config.json"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in BASE.iterdir()}


def test_an_adapter_of_another_base_is_refused(adapter, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no model\.layers\.2\.mlp"):
        write_merged(base, adapter, tmp_path / "out")
