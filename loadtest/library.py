"""The scenarios that come along, by name."""

from __future__ import annotations

from pathlib import Path

from loadtest.errors import ScenarioInvalid
from loadtest.scenario import Scenario, load_scenario

FOLDER = Path(__file__).parent / "scenarios"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_scenario(wanted: str) -> Scenario:
    """The file of that path, or the scenario of that name.

    Raises:
        ScenarioInvalid: neither is there, or it says what can't be.
    """
    path = Path(wanted)
    if path.suffix or path.exists():
        return load_scenario(path)
    if wanted not in names():
        raise ScenarioInvalid(
            f"no file {wanted} and no scenario of that name: there are {', '.join(names())}"
        )
    return load_scenario(FOLDER / f"{wanted}.yaml")
