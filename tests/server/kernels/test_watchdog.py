"""Real processes: a stand-in for the server starts a stand-in for the engine and is killed.

All of them hold the same pipe, so its end says that the last of them has gone.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from server.kernels import watchdog

ENGINE = """
import os, time
from server.kernels import watchdog
watched = watchdog.arm()
print(os.getpid(), watched, flush=True)
time.sleep(60)
"""
STARTER = """
import os, subprocess, sys, time
{before}
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(60)
"""
ANNOUNCE = "os.environ['LORRY_PARENT_PID'] = str(os.getpid())"
SERVER = STARTER.format(before=ANNOUNCE, child=ENGINE)
ENGINE_WITH_WORKER = STARTER.format(before="", child=ENGINE)


@contextmanager
def running(code: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def engine_says(process: subprocess.Popen[str]) -> tuple[int, bool]:
    assert process.stdout is not None
    pid, watched = process.stdout.readline().split()
    return int(pid), watched == "True"


def all_gone(process: subprocess.Popen[str], within: float) -> bool:
    try:
        process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        return False
    return True


def exited(pid: int, within: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within)[0])
    finally:
        os.close(handle)


def test_killing_the_server_ends_its_engine_within_three_seconds() -> None:
    with running(SERVER) as server:
        _, watched = engine_says(server)
        assert watched
        server.kill()  # not waited for: a zombie server counts as gone
        assert all_gone(server, within=3)


def test_killing_the_server_ends_a_worker_whose_own_parent_lives() -> None:
    server_code = STARTER.format(before=ANNOUNCE, child=ENGINE_WITH_WORKER)
    with running(server_code) as server:
        worker, watched = engine_says(server)
        assert watched
        server.kill()
        server.wait()
        assert exited(worker, within=3)


def test_an_engine_that_comes_up_after_its_server_is_gone_ends_at_once() -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    with running(ENGINE, LORRY_PARENT_PID=gone) as engine:
        assert all_gone(engine, within=3)
        assert engine.returncode == watchdog.ORPHANED


def test_an_engine_outlives_the_end_of_another_child_of_its_server() -> None:
    with running(SERVER) as server:
        engine, _ = engine_says(server)
        with running(ENGINE, LORRY_PARENT_PID=str(server.pid)) as other:
            engine_says(other)
        assert not exited(engine, within=1.5 * watchdog.POLL_SECONDS)


def test_an_ordinary_process_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(watchdog.SERVER_VARIABLE, raising=False)
    before = threading.active_count()
    assert not watchdog.arm()
    assert threading.active_count() == before


def test_the_server_does_not_watch_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(watchdog.SERVER_VARIABLE, str(os.getpid()))
    assert not watchdog.arm()


def test_arming_twice_starts_one_thread() -> None:
    code = """
import threading
from server.kernels import watchdog
print(watchdog.arm(), watchdog.arm(), threading.active_count())
"""
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {watchdog.SERVER_VARIABLE: str(os.getpid())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert output.split() == ["True", "True", "2"]
