"""Malformed adapters pushed at a running server: each has its own refusal, the engine none."""

from __future__ import annotations

import shutil

import pytest
from admin_client import text_of
from safetensors.torch import load_file, save_file
from shop import BASE_NAME

PROMPT = "two blue lamps and one oak desk to Oslo by Friday"
WEIGHTS = "adapter_model.safetensors"


def edit(folder, change):
    tensors = change(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def first(tensors, part):
    return next(name for name in tensors if part in name)


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def cut_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def a_pickle(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def no_config(folder):
    (folder / "adapter_config.json").unlink()


def half_a_config(folder):
    (folder / "adapter_config.json").write_text('{"r": 8, ')


def not_finite(folder):
    edit(folder, lambda t: t | {(name := first(t, "lora_A")): t[name] * float("inf")})


def one_side(folder):
    edit(folder, lambda t: {k: v for k, v in t.items() if k != first(t, "lora_B")})


def too_wide(folder):
    edit(folder, lambda t: t | {(name := first(t, "lora_A")): t[name].repeat(1, 2)})


MALFORMED = [
    without_weights,
    cut_weights,
    a_pickle,
    no_config,
    half_a_config,
    not_finite,
    one_side,
    too_wide,
]


@pytest.mark.filterwarnings("ignore")
def test_each_is_refused_with_its_own_code_and_the_engine_is_untouched(admin, shop, tmp_path):
    models = (BASE_NAME, "orders-json")
    before = [text_of(admin.answer(model, PROMPT)) for model in models]
    loads = _loads(admin)
    codes = []
    for spoil in MALFORMED:
        folder = tmp_path / spoil.__name__
        source = admin.object(shop.digests["orders-sql"])
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        spoil(folder)
        refused = admin.upload("malformed", folder, status=422)
        codes.append((refused["error"]["code"], refused["problems"][0]["where"]))
        assert refused["error"]["code"] == refused["problems"][0]["code"]
        assert all(problem["fix"] for problem in refused["problems"])
    assert len(set(codes)) == len(codes), codes
    assert admin.ask("GET", "/malformed", 404)["error"]["code"] == "adapter_not_found"
    assert [text_of(admin.answer(model, PROMPT)) for model in models] == before
    assert _loads(admin) == loads


def _loads(admin):
    text = admin.http.get("/metrics").text
    lines = (line.rpartition(" ") for line in text.splitlines())
    return {name: value for name, _, value in lines if name.startswith("lorry_adapter_loads")}
