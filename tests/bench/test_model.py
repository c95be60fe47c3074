"""The bench's model: the same every time, readable as base and adapters, without zeros."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adapters.checkpoint.base import read_base
from bench.errors import OutUnwritable
from bench.model import FULL, TINY, prepare

SMALL = replace(TINY, adapters=((8, 2),))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_made_twice_the_model_is_the_same(tmp_path):
    first, second = (prepare(tmp_path / name, SMALL) for name in ("one", "two"))
    assert digests(first.base) == digests(second.base)
    assert digests(first.adapters) == digests(second.adapters)


def test_it_is_made_once_and_another_shape_gets_another_folder(tmp_path):
    home = prepare(tmp_path, SMALL)
    weights = home.base / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert prepare(tmp_path, SMALL) == home
    assert weights.stat().st_mtime_ns == before
    assert prepare(tmp_path, replace(SMALL, layers=1)).base != home.base


def test_adapters_differ_and_none_of_their_weights_is_zero(tmp_path):
    home = prepare(tmp_path, SMALL)
    one, two = (load_file(home.adapters / f"r8-0{n}" / "adapter_model.safetensors") for n in (0, 1))
    assert one.keys() == two.keys()
    assert len(one) == 2 * 7 * SMALL.layers
    for name, weight in one.items():
        assert weight.count_nonzero() > 0.99 * weight.numel()
        assert not weight.equal(two[name])


def test_the_full_model_has_the_size_that_the_goals_are_stated_for():
    linears = sum(outputs * inputs for _, outputs, inputs in FULL.linears())
    assert linears + FULL.vocabulary * FULL.hidden == pytest.approx(128e6, rel=0.02)
    assert (FULL.hidden, FULL.layers, FULL.intermediate) == (1024, 12, 2048)


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutUnwritable, match="--out"):
        prepare(tmp_path / "file", SMALL)


def test_the_base_is_one_that_adapters_can_be_published_for(tmp_path):
    base = read_base(prepare(tmp_path, SMALL).base)
    assert dict(base.linears) == {name: (out, into) for name, out, into in SMALL.linears()}


def test_it_has_a_tokenizer_with_a_word_for_each_token(tmp_path):
    home = prepare(tmp_path, SMALL)
    words = json.loads((home.base / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(words) == home.vocabulary
