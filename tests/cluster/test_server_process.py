"""A replica's `lorry serve`: its port, its cache, how it starts and ends, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server_process import ROOT
from standin_serve import StandInProcess

from cluster.server_process import ServerEnded, ServerProcess

BASE = str(ROOT / "examples" / "shop" / "base")
PATHS = f"{ROOT / 'tests' / 'fixtures'}:{ROOT}"


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)


def settings(folder: Path, **given: object) -> dict[str, object]:
    return {"model": BASE, "store": str(folder / "store")} | given


async def test_it_serves_until_it_is_stopped(tmp_path):
    first, second = (
        StandInProcess(
            settings(tmp_path), (), host="127.0.0.1", name=name, cache=tmp_path / "cache"
        )
        for name in ("first", "second")
    )
    try:
        ready = await first.start()
        assert (ready["replica"], ready["capacity"]) == ("first", 32)
        await second.start()
        caches = sorted(each.name for each in (tmp_path / "cache").iterdir())
        assert caches == ["replica-0", "replica-1"], "servers must not share one"
        assert (await second.ready())["is_ready"]
    finally:
        await first.stop(5)
        await second.stop(5)
    with pytest.raises(ServerEnded, match="exit code 0"):
        first.check()


def test_it_gets_neither_rays_variables_nor_settings_of_the_gateway(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "OMP_NUM_THREADS", "LORRY_SSL_CERTFILE", "LORRY_WATCH"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LORRY_MAX_LORAS", "3")
    process = StandInProcess(
        settings(tmp_path), (), host="::1", name="a", cache=tmp_path, store_cache=tmp_path / "s"
    )
    found = process._environment(tmp_path / "own")
    assert not found.keys() & {"RAY_AUTH_TOKEN", "OMP_NUM_THREADS", "LORRY_SSL_CERTFILE"}
    assert "LORRY_WATCH" not in found
    assert (found["LORRY_CACHE"], found["LORRY_STORE_CACHE"]) == (
        str(tmp_path / "own"),
        str(tmp_path / "s"),
    )
    assert found["LORRY_MAX_LORAS"] == "3", "what the node says holds"
    assert process.url == "http://[::1]:0"


async def test_a_server_that_can_not_start_says_so(tmp_path):
    process = ServerProcess(
        settings(tmp_path, model=str(tmp_path / "nothing")),
        (),
        host="127.0.0.1",
        name="a",
        cache=tmp_path / "cache",
    )
    with pytest.raises(ServerEnded, match="exit code 3: its log says why"):
        await process.start()


def test_it_ends_with_its_parent(tmp_path):
    program = f"""
import asyncio
from pathlib import Path
from standin_serve import StandInProcess
cache = Path({str(tmp_path / "cache")!r})
process = StandInProcess({settings(tmp_path)!r}, (), host="127.0.0.1", name="a", cache=cache)
async def main():
    await process.start()
    print(process._process.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.02)
