"""A whole run against Lorry's own app on a stand-in engine, whose counts must be there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from marked_server import marked_server
from rich.console import Console
from running_server import RunningServer

from loadtest import run as module
from loadtest.drive.client import Target
from loadtest.drive.progress import Progress
from loadtest.errors import TargetUnfit
from loadtest.plan.scenario import Scenario
from loadtest.results import Run
from loadtest.run import Setting, run_scenario

SCENARIO = Scenario.model_validate(
    {
        "name": "short",
        "adapters": 2,
        "streams": {
            "mixed": {
                "adapters": {"count": 2},
                "output_tokens": 3,
                "streaming": 0,
                "base_share": 0.2,
            }
        },
        "phases": [
            {"name": "steady", "seconds": 1, "traffic": {"mixed": {"kind": "constant", "rate": 10}}}
        ],
    }
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with marked_server(tmp_path_factory.mktemp("run"), "orders", "tone") as server:
        yield server


async def played(server: RunningServer) -> Run:
    setting = Setting(target=Target(url=server.url), description="a stand-in")
    with Progress(Console(quiet=True)) as progress:
        return await run_scenario(SCENARIO, setting, progress)


async def test_counts_are_compared_by_adapter(server):
    run = await played(server)
    assert run.agreement.compared
    assert run.agreement.disagreements == ()
    assert run.windows[0].planned == {"mixed": 10}
    assert len(run.records) == 10


async def test_metrics_of_lorry_that_cannot_be_read_fail_the_run(server, monkeypatch):
    async def refuse(*_: object) -> None:
        raise TargetUnfit("/metrics answered 500")

    monkeypatch.setattr(module, "scrape", refuse)
    (apart,) = (await played(server)).agreement.disagreements
    assert "no /metrics that can be read" in apart.what
