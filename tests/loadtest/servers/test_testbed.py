"""The server of a scenario: a cancelled start, and the lock of its folder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from loadtest.errors import OptionsClash, OutUnwritable
from loadtest.plan.scenario import Server
from loadtest.servers import command_lines as commands
from loadtest.servers import processes
from loadtest.servers.command_lines import Setup
from loadtest.servers.testbed import claimed, started

NEVER_READY = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


async def test_a_cancelled_start_leaves_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "stock", lambda *_: [sys.executable, "-c", NEVER_READY])
    setup = Setup(base=Path(), name="tiny", work=tmp_path, options=Server())
    log = tmp_path / "stock.log"

    async def start() -> None:
        async with started("stock", setup):
            pass

    starting = asyncio.create_task(start())
    async with asyncio.timeout(30):
        while not log.exists() or not log.read_text().endswith("\n"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert processes.members(int(log.read_text())) == []


def test_one_load_test_at_a_time_uses_a_folder(tmp_path):
    home = tmp_path / "home"
    with claimed(home), pytest.raises(OptionsClash, match="another load test"), claimed(home):
        pass
    with claimed(home):
        pass


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(OutUnwritable, match="can't write"), claimed(tmp_path / "home"):
        pass
