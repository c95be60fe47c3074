"""One `lorry serve` as a child process: started, asked and stopped. Knows nothing of Ray.

A replica is the same server as on one machine, with its own HTTP, engine, drain and exit codes. The
child ends when its parent does, however that ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import aiohttp
import msgspec

from cluster.arguments import NO_FILE, OF_THE_GATEWAY, SET_HERE
from server.kernels.watchdog import SUPERVISOR_VARIABLE
from server.settings import ENV_PREFIX

_PORT_TAKEN = 4  # the exit code of PortInUse: another program was quicker
_TRIES = 5
_ASK_SECONDS = 10.0  # for /readyz: an answer that takes longer is none
_LOOK_SECONDS = 0.25
_KILL_SECONDS = 15.0  # beyond the drain


class ServerEnded(Exception):
    """The server's process has ended by itself; the text says how."""


class ServerProcess:
    """`settings` are those of `lorry serve`, by their names there; `flags` go to vLLM's engine."""

    command: ClassVar[Sequence[str]] = ("-m", "lorry", "serve")

    def __init__(
        self,
        settings: Mapping[str, Any],
        flags: Sequence[str],
        *,
        host: str,
        name: str,
        cache: Path,
        store_cache: Path | None = None,
    ) -> None:
        self.name = name
        self._settings = {k: v for k, v in settings.items() if k != "cache"}
        self._flags = list(flags)
        self._host = host
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._is_stopping = False
        self._cache = _CacheFolder(cache)
        # Copies of a bucket's adapters may be shared by the servers of one machine.
        self._store_cache = store_cache or cache / "store"

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def start(self) -> dict[str, Any]:
        """Start it and wait until it is ready; returns its /readyz.

        Raises:
            ServerEnded: it ended instead. Its log says why.
        """
        for _ in range(_TRIES):
            self._port = _free_port(self._host)
            self._process = self._spawn()
            try:
                return await self._wait_ready()
            except ServerEnded:
                if self._process.returncode != _PORT_TAKEN:
                    await self.stop(0)
                    raise
        await self.stop(0)
        raise ServerEnded(f"no free port on {self._host} in {_TRIES} tries")

    def check(self) -> None:
        """Raises ServerEnded if the process is not there any more."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise ServerEnded(f"lorry serve has ended with exit code {code}: its log says why")

    async def ready(self) -> dict[str, Any]:
        """What /readyz says, whether it is ready or not.

        Raises:
            ServerEnded: the process is not there any more.
            aiohttp.ClientError, TimeoutError: it does not answer.
        """
        self.check()
        if self._is_stopping:
            raise ServerEnded("it is being stopped")
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_ASK_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout)
        async with self._session.get(f"{self.url}/readyz") as answer:
            body: dict[str, Any] = msgspec.json.decode(await answer.read())
            return body | {"is_ready": answer.status == 200}

    async def stop(self, drain_seconds: float) -> None:
        """Let running answers finish within `drain_seconds`, then end it."""
        self._is_stopping = True
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, drain_seconds + _KILL_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        self._cache.release()

    async def _wait_ready(self) -> dict[str, Any]:
        while True:
            try:
                found = await self.ready()
                if found["is_ready"] and found.get("replica") == self.name:  # no other program
                    return found
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
                pass  # its port is not open yet
            except RuntimeError:  # aiohttp's: the session was closed under the question
                if not self._is_stopping:
                    raise
            await asyncio.sleep(_LOOK_SECONDS)

    def _spawn(self) -> subprocess.Popen[bytes]:
        model = str(self._settings["model"])
        return subprocess.Popen(
            [sys.executable, *self.command, model, "--config", NO_FILE, "--", *self._flags],
            env=self._environment(self._cache.take()),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for the cluster to handle
        )

    def _environment(self, cache: Path) -> dict[str, str]:
        own = {
            "host": self._host,
            "port": self._port,
            "replica": self.name,
            "cache": str(cache),
            "store_cache": str(self._store_cache),
        }
        given = {
            f"{ENV_PREFIX}{name.upper()}": _as_variable(value)
            for name, value in (self._settings | own).items()
        }
        # Not Ray's own variables, its token and threads among them, nor settings of the gateway.
        left_out = {f"{ENV_PREFIX}{name.upper()}" for name in SET_HERE | OF_THE_GATEWAY}
        left_out -= {f"{ENV_PREFIX}ADMIN_TOKEN_FILE"}
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RAY_") and name not in left_out | {"OMP_NUM_THREADS"}
        }
        # The gateway says where a call comes from; callers do not reach this server.
        inherited["FORWARDED_ALLOW_IPS"] = "*"
        return {**inherited, **given, SUPERVISOR_VARIABLE: str(os.getpid())}


class _CacheFolder:
    """A folder below `root` that no other server uses, and that the next one finds warm.

    Servers must not share one: vLLM writes compiled models there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: IO[bytes] | None = None
        self._folder: Path | None = None

    def take(self) -> Path:
        while self._folder is None:
            for number in range(1000):
                folder = self.root / f"replica-{number}"
                folder.mkdir(parents=True, exist_ok=True)
                lock = (folder / "lock").open("wb")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                    continue
                self._lock, self._folder = lock, folder
                break
            else:
                time.sleep(_LOOK_SECONDS)
        return self._folder

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = self._folder = None


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _as_variable(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value, enc_hook=str).decode()
