"""How sides take turns, and missing sides, with stand-ins for the servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from load_records import record, run_of, window
from openai_standin import Standin, serve
from rich.console import Console

from loadtest import compare
from loadtest.compare import Order, check_peers, run_rounds
from loadtest.drive.progress import Progress
from loadtest.errors import ServerFailed, TargetUnfit
from loadtest.plan.scenario import Scenario
from loadtest.records import Run
from loadtest.servers.testbed import Setting

SCENARIO = Scenario.model_validate(
    {
        "name": "short",
        "streams": {"base": {"output_tokens": 3}},
        "phases": [
            {"name": "steady", "seconds": 0.5, "traffic": {"base": {"kind": "constant", "rate": 8}}}
        ],
        "compare": [{"metric": "requests", "phase": "steady", "peer": "stock", "at_least": 1}],
    }
)


@dataclass
class Side:
    """The part of a started server that a comparison uses."""

    kind: Any
    url: str
    log: list[str]
    urls: dict[str, str] = field(default_factory=dict)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    launches: tuple[int, ...] = (1,)
    held_bytes: int = 1 << 30
    start_seconds: float = 0.0
    admin_token: str | None = None
    fits: int | None = None
    ended: None = None

    def freeze(self) -> None:
        self.log.append(f"freeze {self.kind}")

    def thaw(self) -> None:
        self.log.append(f"thaw {self.kind}")


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with serve() as standin:
        yield standin


GONE = "http://127.0.0.1:1"


async def run_by_hand(scenario: Scenario, setting: Setting, progress: Progress) -> Run:
    """Instead of a load of a second for each side."""
    if setting.target.url == GONE:
        raise TargetUnfit("no such server")
    return run_of(record(stream="base"), windows=[window(planned={"base": 1})])


@pytest.fixture
def run(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def run(log: list[str], rounds: int = 2, broken: str = "", gone: str = ""):
        if broken or gone:
            monkeypatch.setattr(compare, "run_scenario", run_by_hand)

        @asynccontextmanager
        async def started(kind: str, setup: object) -> AsyncIterator[Side]:
            if kind == broken:
                raise ServerFailed("it said: no")
            yield Side(kind, GONE if kind == gone else standin.url, log)

        monkeypatch.setattr(compare, "started", started)
        order = Order(
            scenario=SCENARIO,
            base=tmp_path,
            peers=["stock", "peft"],
            rounds=rounds,
            processes=1,
            home=tmp_path / "home",
        )
        with Progress(Console(quiet=True)) as progress:
            return await run_rounds(order, lambda _: None, progress)

    return run


async def test_one_side_runs_at_a_time_and_the_sides_take_turns(run):
    log: list[str] = []
    found = await run(log)
    turns = [entry.removeprefix("thaw ") for entry in log if entry.startswith("thaw")]
    assert turns == ["lorry", "stock", "peft", "stock", "peft", "lorry"]
    awake: set[str] = {"lorry", "stock", "peft"}
    for entry in log:
        verb, kind = entry.split()
        (awake.discard if verb == "freeze" else awake.add)(kind)
        assert len(awake) <= 1 or verb == "freeze"
    assert found.passed
    assert {row.peer for row in found.rows} == {"stock", "peft"}
    assert len(set(found.plans)) == 2  # no cache knows a later round's prompts


@pytest.mark.parametrize("fault", ["broken", "gone"])
async def test_a_missing_peer_is_left_out_and_its_comparisons_fail(run, fault):
    found = await run([], **{fault: "stock"})
    assert {row.peer for row in found.rows} == {"peft"}
    assert found.notes[0].startswith("left out: stock")
    assert not found.passed


@pytest.mark.parametrize(("fault", "error"), [("broken", ServerFailed), ("gone", TargetUnfit)])
async def test_a_comparison_fails_without_our_own_server(run, fault, error):
    with pytest.raises(error):
        await run([], **{fault: "lorry"})


def test_peers_run_in_a_fixed_order():
    wanted = ["llamacpp", "peft", "stock", "plain"]
    assert check_peers(wanted, SCENARIO) == ["plain", "stock", "peft", "llamacpp"]
