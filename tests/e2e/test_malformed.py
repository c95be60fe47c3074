"""Malformed adapters uploaded to a running server are refused before the engine sees them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from admin_client import text_of
from malformed import MALFORMED
from shop import BASE_NAME

PROMPT = "two blue lamps and one oak desk to Oslo by Friday"


@pytest.mark.filterwarnings("ignore")
def test_each_is_refused_with_its_own_code_and_the_engine_loads_nothing(admin, shop, tmp_path):
    models = (BASE_NAME, "orders-json")
    before = [text_of(admin.answer(model, PROMPT)) for model in models]
    loads = _loads(admin)
    codes = set()
    for number, case in enumerate(MALFORMED):
        folder = tmp_path / str(number)
        source = admin.object(shop.digests["orders-sql"])
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        case.make(folder)
        if not _can_be_uploaded(folder):
            continue
        refused = admin.upload("malformed", folder, status=422)
        found = {problem["code"] for problem in refused["problems"]}
        assert case.code in found, case.title
        assert all(problem["where"] and problem["fix"] for problem in refused["problems"])
        codes.add(case.code)
        shutil.rmtree(folder)
    assert len(codes) >= 30, codes
    assert admin.ask("GET", "/malformed", 404)["error"]["code"] == "adapter_not_found"
    assert [text_of(admin.answer(model, PROMPT)) for model in models] == before
    assert _loads(admin) == loads


def _can_be_uploaded(folder: Path) -> bool:
    """No link, pipe or huge file; tests/adapters/checkpoint/test_malformed.py covers those."""
    return all(
        path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 22
        for path in folder.iterdir()
    )


def _loads(admin):
    text = admin.http.get("/metrics").text
    lines = (line.rpartition(" ") for line in text.splitlines())
    return {name: value for name, _, value in lines if name.startswith("lorry_adapter_loads")}
