"""The scenarios that come along, by name."""

from __future__ import annotations

from pathlib import Path

from loadtest.errors import ScenarioInvalid
from loadtest.plan.scenario import Scenario, load_scenario

FOLDER = Path(__file__).parent.parent / "scenarios"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_scenario(wanted: str, seed: int | None = None) -> Scenario:
    """The file of that path, or the scenario of that name; with another seed if one is given.

    Raises:
        ScenarioInvalid: neither is there, or it says what can't be.
    """
    found = load_scenario(_find_file(wanted))
    return found if seed is None else found.model_copy(update={"seed": seed})


def _find_file(wanted: str) -> Path:
    path = Path(wanted)
    if path.suffix or path.is_file():
        return path
    if wanted not in names():
        raise ScenarioInvalid(
            f"no file {wanted} and no scenario of that name: there are {', '.join(names())}"
        )
    return FOLDER / f"{wanted}.yaml"
