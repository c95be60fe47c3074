"""One server as a process in its own session: start, wait until ready, stop, restart."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from loadtest.errors import ServerFailed
from loadtest.servers import processes
from loadtest.servers.environment import cleaned

START_SECONDS = 600.0
_PROBE_SECONDS = 5.0
_POLL_SECONDS = 0.1
_STOP_SECONDS = 45.0  # `lorry serve` lets answers finish for 30
_LINGER_SECONDS = 2.0
_SHOWN = 300  # characters of a log's last line
_ENGINE_TITLE = "VLLM::EngineCore"  # vllm.v1.engine.core sets it


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Launch:
    """`ready` is the path that answers 200 once the server accepts calls."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        port: int,
        ready: str,
        log: Path,
        patience: float = START_SECONDS,
        given_up: threading.Event | None = None,  # once set, starting fails at once
    ) -> None:
        self.port, self.log = port, log
        self.start_seconds = 0.0
        self._command = command
        self._environment = {**cleaned(os.environ), **environment}
        self._ready = ready
        self._patience = patience
        self._given_up = given_up or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def session(self) -> int:
        """The id of its session, equal to its process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def ended(self) -> ServerFailed | None:
        """The error if it has ended by itself."""
        code = None if self._process is None or self._stopped else self._process.poll()
        return None if code is None else self._failed(f"ended with code {code}")

    def start(self) -> None:
        """Start it and wait until it accepts calls; append to the log.

        Raises:
            ServerFailed: it ended, or was not ready in time. No process of it is left.
        """
        began, self._stopped = time.monotonic(), False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_ready(self._process, began + self._patience)
        except BaseException:  # on Ctrl-C too: no unknown server may stay behind
            self._end(signal.SIGKILL)
            raise
        self.start_seconds = time.monotonic() - began

    def stop(self) -> None:
        """Stop it, then kill what is left of its session. Harmless if it has ended."""
        self._stopped = True
        if self._process is not None:
            processes.send(self.session, signal.SIGCONT)
            self._end(signal.SIGTERM)

    def kill_engine(self) -> None:
        """Kill vLLM's engine process once the server is ready.

        Raises:
            ServerFailed: the server ended, was not ready in time, or has no such process.
        """
        assert self._process is not None, "not started"
        self._wait_ready(self._process, time.monotonic() + self._patience)
        engines = processes.titled(self.session, _ENGINE_TITLE)
        if not engines:
            raise self._failed("has no engine process")
        for pid in engines:
            processes.kill(pid, signal.SIGKILL)

    def _wait_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        with httpx2.Client(timeout=_PROBE_SECONDS, trust_env=False) as client:
            while time.monotonic() < deadline:
                code = process.poll()
                if code is not None:
                    raise self._failed(f"ended with code {code} before it was ready")
                if self._is_ready(client):
                    return
                if self._given_up.wait(_POLL_SECONDS):
                    raise self._failed("was cancelled before it was ready")
        raise self._failed(f"was not ready within {self._patience:.0f} s")

    def _is_ready(self, client: httpx2.Client) -> bool:
        try:
            answer = client.get(self.url + self._ready)
        except httpx2.TransportError:
            return False
        return answer.status_code == httpx2.codes.OK

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        deadline = time.monotonic() + _LINGER_SECONDS
        while processes.members(self.session):
            if number == signal.SIGKILL or time.monotonic() > deadline:
                processes.send(self.session, signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"the server {what}; it said last: {last_line(self.log)} ({self.log})")


def last_line(log: Path) -> str:
    """The log's last non-empty line, shortened."""
    lines = log.read_text(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.strip()), "nothing")
    return " ".join(said.split())[:_SHOWN]
