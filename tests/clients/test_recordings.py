"""Every recorded client made of every answer what it should; docs/clients.md says so."""

from __future__ import annotations

import dataclasses
import json

import pytest
from server_process import ROOT

from tests.clients import manual
from tests.clients.cases import FEATURES, problem
from tests.clients.record.environments import read_clients
from tests.clients.recordings import FOLDER, read

CLIENTS = read_clients()


@pytest.mark.parametrize("name", [each.name for each in CLIENTS])
def test_the_client_made_of_each_answer_what_it_should(name):
    cases = read(name).cases.values()
    found = {case.name: problem(case) for case in cases}
    assert {name: words for name, words in found.items() if words} == {}


def test_every_client_has_a_recording_of_the_version_that_is_named():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == {each.name for each in CLIENTS}
    for client in CLIENTS:
        assert read(client.name).packages == list(client.packages)


def test_the_page_is_current():
    assert (ROOT / "docs" / "clients.md").read_text() == manual.render(), "run `make docs`"


def test_recordings_are_small_and_hold_no_secret_and_no_path():
    for path in FOLDER.glob("*.jsonl"):
        text = path.read_text()
        assert len(text) < 64 * 1024
        assert not [place for place in ("/home/", "/root/", "/tmp/") if place in text]
        for each in (case for case in read(path.stem).cases.values() for case in case.requests):
            assert each.headers.get("authorization", "Bearer none") == "Bearer none"
            assert each.headers.get("x-api-key", "none") == "none"


def test_a_wrong_result_is_a_problem():
    case = read("openai-python").cases["tool"]
    assert problem(case) is None
    wrong = [
        {"got": {**case.got, "model": "shop-base"}},
        {"got": {**case.got, "tool": {"name": "ship", "arguments": json.dumps({"city": "Oslo"})}}},
        {"got": {"error": {"class": "APIError", "status": 500, "code": None, "says": "no"}}},
        {"requests": [dataclasses.replace(case.requests[0], status=400)]},
    ]
    assert all(problem(dataclasses.replace(case, **each)) for each in wrong)
    refused = read("openai-python").cases["image"]
    assert FEATURES["image"].refused
    assert problem(dataclasses.replace(refused, got={"text": "a red dot"}))
