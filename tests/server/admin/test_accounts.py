"""`lorry limits` and `lorry usage` on a running server answer as they do on its store."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from running_server import RunningServer, running_server
from standin_server import TOKEN, publish
from typer.testing import CliRunner

import lorry
from adapters.catalog import Catalog


@pytest.fixture
def server(tmp_path) -> Iterator[RunningServer]:
    with Catalog.open(tmp_path / "store") as catalog:
        publish(catalog, "red")
    with running_server(tmp_path / "base", tmp_path) as server:
        yield server


def ask(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(lorry.app, words, env={"LORRY_ADMIN_TOKEN": TOKEN})
    return done.exit_code, done.output


def test_limits_are_the_same_from_both_sides(server):
    there, here = ("--url", server.url), ("--store", str(server.store))
    words = ("limits", "set", "--adapter", "red", "--rpm", "6", "--budget-tokens", "1M/day")
    assert ask(*words, *there) == (
        0,
        "red  all callers  6 requests a minute, 1000000 tokens a day\n",
    )
    listed = [ask("limits", "list", "--json", *side) for side in (there, here)]
    assert listed[0] == listed[1]
    assert json.loads(listed[0][1])[0]["budget"] == {"tokens": 1_000_000, "period": "day"}
    code, said = ask("limits", "remove", "--adapter", "red", "--key", "nobody", *there)
    assert (code, "limit_not_found" in said) == (2, True)
    assert ask("limits", "remove", "--adapter", "red", *there)[0] == 0
    assert json.loads(ask("limits", "list", "--json", *here)[1]) == []


def test_usage_is_the_same_from_both_sides(server):
    with Catalog.open(server.store) as catalog:
        catalog.usage.prepare()
    assert httpx2.get(f"{server.url}/v1/usage").json()["data"] == []
    there, here = ("--url", server.url), ("--store", str(server.store))
    for words in (("--json",), ("--by", "day", "--since", "30d", "--csv"), ("--key", "ann")):
        assert ask("usage", *words, *there) == ask("usage", *words, *here)
    code, said = ask("usage", "--by", "colour", *there)
    assert (code, "bad_field" in said) == (2, True)
