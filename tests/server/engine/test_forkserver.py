"""Engines are forked: with the server's environment, and they end with the fork server.

In processes of their own, as a process has one fork server for good. They preload a light module,
except where the import of vLLM itself is what a signal interrupts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "fork_program.py"
LIGHT = "server.engine.environment"


class Program:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.fork_server: int = self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, step: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()
        return self.read()


@contextmanager
def program(preload: str) -> Iterator[Program]:
    root = PROGRAM.parents[3]
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), preload],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


def test_a_child_has_the_environment_of_the_moment_and_reports_its_end():
    with program(LIGHT) as server:
        for _ in range(2):
            assert server.do("fork") == [server.fork_server, 1, "yes", None, 0]


def test_credentials_stay_with_the_server():
    with program(LIGHT) as server:
        assert server.do("find secrets") == ["server"]


def test_what_vllm_asks_of_a_new_interpreter_is_answered_by_a_fork():
    with program(LIGHT) as server:
        assert server.do("answer") == 42
        assert "not this one" in server.do("refuse")


def test_children_end_with_the_fork_server_and_the_next_one_gets_another():
    with program(LIGHT) as server:
        assert server.do("kill") is False
        parent, *_, status = server.do("fork")
        assert parent != server.fork_server
        assert status == 0


@pytest.mark.slow  # it imports vLLM in a process of its own
def test_the_fork_server_leaves_signals_to_the_server_and_ends_with_it():
    """While it imports vLLM, which takes seconds."""
    with program("server.engine.preload") as server:
        ignores = "SigIgn:\t0000000001005003"
        status = Path(f"/proc/{server.fork_server}/status")
        deadline = time.monotonic() + 20
        while (
            not {ignores, "SigBlk:\t0000000000000000"} <= {*status.read_text().split("\n")}
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(server.fork_server, number)
        time.sleep(0.2)
        assert lives(server.fork_server)
        server.process.kill()
        assert wait_gone(server.fork_server, 5)
