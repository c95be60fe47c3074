"""A whole run against Lorry's app on a stand-in engine, and its reports."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from load_records import record, run_of, scenario_of
from marked_server import marked_server
from rich.console import Console
from running_server import RunningServer

from loadtest import run as module
from loadtest.drive.client import Target
from loadtest.drive.progress import Progress
from loadtest.errors import OutUnwritable, ServerFailed, TargetUnfit
from loadtest.plan.scenario import Scenario
from loadtest.records import Run
from loadtest.run import run_scenario
from loadtest.servers.testbed import Options, Setting

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


async def test_unreadable_metrics_of_lorry_fail_the_run(server, monkeypatch):
    async def refuse(*_: object) -> None:
        raise TargetUnfit("/metrics answered 500")

    monkeypatch.setattr(module, "scrape", refuse)
    (apart,) = (await played(server)).agreement.disagreements
    assert "no readable /metrics" in apart.what


@pytest.fixture
def by_hand(monkeypatch):
    """A run with fixed results, whose server ends with the given error, and the printed text."""

    async def run_once(out: Path, ended: ServerFailed | None = None) -> None:
        @contextlib.asynccontextmanager
        async def opened(*_):
            yield Setting(target=Target(url=""), description="", ended=lambda: ended)

        async def observed(*_):
            return run_of(record())

        monkeypatch.setattr(module, "opened", opened)
        monkeypatch.setattr(module, "run_with_progress", observed)
        console = Console(file=printed, width=160)
        await module.run(scenario_of(), Options(home=out), out, None, console, False)

    printed = io.StringIO()
    return run_once, printed


async def test_the_end_of_the_server_is_an_error_after_the_reports(by_hand, tmp_path):
    run_once, printed = by_hand
    with pytest.raises(ServerFailed, match="out of memory"):
        await run_once(tmp_path, ServerFailed("the server ended: out of memory"))
    assert (tmp_path / "report.html").exists()
    assert "PASSED" in printed.getvalue()


async def test_the_table_is_printed_even_if_no_file_can_be_written(by_hand, tmp_path):
    run_once, printed = by_hand
    (tmp_path / "file").touch()
    with pytest.raises(OutUnwritable):
        await run_once(tmp_path / "file")
    assert "PASSED" in printed.getvalue()
