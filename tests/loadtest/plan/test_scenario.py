"""Scenario files: the included ones load, and an invalid one is refused with all its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.errors import ScenarioInvalid
from loadtest.plan.plan import digest
from loadtest.plan.scenario import FOLDER, find_scenario, load_scenario, names


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "scenario.yaml"


def document(**changed: Any) -> dict[str, Any]:
    traffic = {"mixed": {"kind": "poisson", "rate": 1}}
    return {
        "name": "small",
        "adapters": 2,
        "streams": {"mixed": {"adapters": {"count": 2}}},
        "phases": [{"name": "steady", "seconds": 1, "traffic": traffic}],
    } | changed


def phase(**changed: Any) -> dict[str, Any]:
    return document()["phases"][0] | changed


def refuse(file: Path, written: dict[str, Any]) -> str:
    file.write_text(yaml.safe_dump(written))
    with pytest.raises(ScenarioInvalid) as refused:
        load_scenario(file)
    return str(refused.value)


def test_included_scenarios_load_and_are_found_by_the_names_of_their_files():
    found = {name: find_scenario(name) for name in names()}
    assert {name: scenario.name for name, scenario in found.items()} == {n: n for n in names()}
    assert all(scenario.about and digest(scenario) for scenario in found.values())
    assert "default" in found


def test_a_minimal_scenario_is_valid(file):
    file.write_text(yaml.safe_dump(document()))
    loaded = load_scenario(file)
    assert loaded.seed == 42
    assert loaded.phases[0].measured
    assert loaded.streams["mixed"].endpoint == "completions"


def test_a_traces_path_is_relative_to_the_scenario(file, monkeypatch):
    traffic = {"mixed": {"kind": "trace", "file": "calls.jsonl"}}
    file.write_text(yaml.safe_dump(document(phases=[phase(traffic=traffic)])))
    monkeypatch.chdir(file.parent)
    for path in (file, Path(file.name)):
        assert load_scenario(path).phases[0].traffic["mixed"].file == file.parent / "calls.jsonl"


WRONG_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"sed": 1}, "no such key 'sed'"),
    ({"streams": {"mixed": {"outputs": 1}}}, "no such key 'streams.mixed.outputs'"),
    ({"name": "Small one"}, "name: "),
    ({"phases": []}, "phases: "),
    ({"phases": [phase(), phase()]}, "two phases have the same name"),
    ({"phases": [phase(seconds=0)]}, "phases.0.seconds: "),
    ({"phases": [phase(seconds=float("inf"))]}, "phases.0.seconds: "),
    ({"phases": [phase(traffic={})]}, "phases.0.traffic: "),
    (
        {"phases": [phase(traffic={"other": {"kind": "poisson", "rate": 1}})]},
        "no stream 'other': there are mixed",
    ),
    (
        {"phases": [phase(actions=[{"do": "publish", "adapter": 2, "at": 0}])]},
        "phase steady: no adapter 2",
    ),
    ({"phases": [phase(actions=[{"do": "dance", "at": 0}])]}, "phases.0.actions.0: "),
    ({"adapters": 1}, "stream mixed wants more than the 1 adapters"),
    ({"expect": [{"metric": "requests"}]}, "`at_most`, `at_least`"),
    ({"expect": [{"metric": "speed", "at_most": 1}]}, "expect.0.metric: "),
    ({"expect": [{"metric": "jain", "at_most": 1, "phase": "x"}]}, "no phase 'x'"),
    (
        {"expect": [{"metric": "jain", "at_most": 1, "over": {"stream": "x"}}]},
        "no stream 'x'",
    ),
]


def test_an_error_names_its_key(file):
    messages = [(problem, refuse(file, document(**changed))) for changed, problem in WRONG_KEYS]
    assert [m for problem, m in messages if problem not in m or not m.startswith(f"{file}: ")] == []


def test_all_errors_are_in_one_message(file):
    wrong = document(sed=1, timeout_seconds=-1, phases=[phase(seconds="long")])
    message = refuse(file, wrong)
    for problem in ("'sed'", "timeout_seconds: ", "phases.0.seconds: "):
        assert problem in message
    assert "\n" not in message


def test_all_wrong_references_are_in_one_message(file):
    traffic = {"a": {"kind": "poisson", "rate": 1}, "b": {"kind": "closed", "concurrency": 1}}
    message = refuse(file, document(adapters=1, phases=[phase(traffic=traffic)]))
    for problem in ("no stream 'a'", "no stream 'b'", "stream mixed wants more"):
        assert problem in message


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        (0, "streams.mixed.output_tokens.number: Input should be greater"),
        ("many", "streams.mixed.output_tokens.number: Input should be a valid integer"),
        ({"kind": "normal"}, "streams.mixed.output_tokens: Give a number, or a `kind`"),
        (
            {"kind": "uniform", "least": 5, "most": 4},
            "streams.mixed.output_tokens.uniform: `least` is above `most`",
        ),
    ],
)
def test_the_error_of_a_length_names_its_own_kind_only(file, length, problem):
    message = refuse(file, document(streams={"mixed": {"output_tokens": length}}))
    assert message.startswith(f"{file}: {problem}")
    assert ";" not in message


@pytest.mark.parametrize(
    "text",
    ["name: [1", "name: 2024-13-45", "[" * 1000, "\x00", "a: !!python/object:os.system {}"],
    ids=["open-bracket", "no-date", "deep", "null", "object"],
)
def test_invalid_yaml_is_reported(file, text):
    file.write_text(text)
    with pytest.raises(ScenarioInvalid, match="is not YAML"):
        load_scenario(file)


def test_a_duplicate_key_is_refused(file):
    """With two `expect` blocks YAML keeps the last, and the first would not be checked."""
    file.write_text("name: x\nstreams:\n  a: {output_tokens: 8, output_tokens: 9}\n")
    with pytest.raises(ScenarioInvalid, match="the key 'output_tokens' appears twice"):
        load_scenario(file)


@pytest.mark.parametrize("text", ["", "just words", "- 1\n- 2\n"])
def test_other_yaml_than_a_scenario_is_refused(file, text):
    file.write_text(text)
    with pytest.raises(ScenarioInvalid, match=r"valid dictionary"):
        load_scenario(file)


def test_an_unreadable_file_is_named(file, tmp_path):
    for path in (file, tmp_path):
        with pytest.raises(ScenarioInvalid, match="can't read"):
            load_scenario(path)
    file.write_bytes(b"name: \xff")
    with pytest.raises(ScenarioInvalid, match="can't read"):
        load_scenario(file)


def test_a_file_is_found_by_path_and_a_folder_does_not_hide_an_included_scenario(
    tmp_path, monkeypatch
):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "mine.yaml").write_text((FOLDER / "smoke.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert find_scenario("smoke") == find_scenario("mine.yaml")


def test_a_given_seed_replaces_the_seed_alone():
    usual, other = find_scenario("smoke"), find_scenario("smoke", 7)
    assert other.seed == 7
    assert other.model_copy(update={"seed": usual.seed}) == usual


def test_an_unknown_name_is_reported_with_the_known_ones():
    with pytest.raises(ScenarioInvalid, match="there are base-only"):
        find_scenario("no-such-one")


def test_adapters_above_the_servers_rank_are_refused(file):
    assert "adapter_rank 16 is above server.max_lora_rank" in refuse(
        file, document(adapter_rank=16)
    )
    file.write_text(yaml.safe_dump(document(adapter_rank=16, server={"max_lora_rank": 16})))
    assert load_scenario(file).adapter_rank == 16
