"""What the commands leave when the run went well and the rest did not."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from load_records import record, run_of, scenario_of
from rich.console import Console

from loadtest import conduct
from loadtest.drive.client import Target
from loadtest.errors import OutUnwritable, ServerFailed
from loadtest.run import Setting
from loadtest.servers.testbed import Options


@pytest.fixture
def conducted(monkeypatch):
    """Runs by hand against a server that has ended as told, and what was printed."""

    async def run_once(out: Path, ended: ServerFailed | None = None) -> None:
        @contextlib.asynccontextmanager
        async def opened(*_):
            yield Setting(target=Target(url=""), description="", ended=lambda: ended)

        async def observed(*_):
            return run_of(record())

        monkeypatch.setattr(conduct, "opened", opened)
        monkeypatch.setattr(conduct, "_observed", observed)
        console = Console(file=printed, width=160)
        await conduct.run_once(scenario_of(), Options(home=out), out, None, console, False)

    printed = io.StringIO()
    return run_once, printed


async def test_a_server_that_ended_by_itself_is_an_error_after_the_reports(conducted, tmp_path):
    run_once, printed = conducted
    with pytest.raises(ServerFailed, match="out of memory"):
        await run_once(tmp_path, ServerFailed("the server ended: out of memory"))
    assert (tmp_path / "report.html").exists()
    assert "PASSED" in printed.getvalue()


async def test_what_was_found_is_printed_even_if_it_cannot_be_kept(conducted, tmp_path):
    run_once, printed = conducted
    (tmp_path / "file").touch()
    with pytest.raises(OutUnwritable):
        await run_once(tmp_path / "file")
    assert "PASSED" in printed.getvalue()
