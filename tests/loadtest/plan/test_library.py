"""Scenarios by name and by file."""

from __future__ import annotations

import pytest

from loadtest.errors import ScenarioInvalid
from loadtest.plan.library import FOLDER, find_scenario, names


@pytest.mark.parametrize("name", names())
def test_a_shipped_scenario_is_found_by_its_name(name):
    assert find_scenario(name).name == name


def test_a_file_is_read_and_a_folder_of_a_scenarios_name_is_not_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "mine.yaml").write_text((FOLDER / "smoke.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert find_scenario("smoke") == find_scenario("mine.yaml")


def test_another_seed_changes_nothing_else():
    usual, other = find_scenario("smoke"), find_scenario("smoke", 7)
    assert other.seed == 7
    assert other.model_copy(update={"seed": usual.seed}) == usual


def test_what_is_neither_is_told_with_what_there_is():
    with pytest.raises(ScenarioInvalid, match="there are base-only"):
        find_scenario("no-such-one")
