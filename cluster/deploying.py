"""Brings a cluster up on Ray, and down again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayError

from cluster.app import build_gateway, build_servers
from cluster.arguments import GATEWAY, SERVERS, GatewayArguments, ServersArguments
from cluster.gateway.http import DRAIN_SECONDS
from server import signals
from server.errors import EngineStartFailed

_OBJECT_STORE_BYTES = 80 << 20  # nothing of ours goes through it
_STOP_SECONDS = 60.0  # beyond the drain


class _Stopped(BaseException):
    """A signal, while the cluster comes up: nothing waits for it, so nothing is let finish."""


class _Signals:
    """The first signal ends `wait`, or the start; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.is_up = False
        for number in signals.STOPPING:
            signal.signal(number, self._handle)

    @property
    def is_set(self) -> bool:
        return self._stop.is_set()

    def wait(self) -> None:
        self.is_up = True
        self._stop.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._stop.is_set():
            if number == signal.SIGINT:
                os._exit(signals.INTERRUPTED_EXIT_CODE)  # Ray's processes end with this one
            return
        self._stop.set()
        if not self.is_up:
            raise _Stopped


def run_here(
    servers: ServersArguments, gateway: GatewayArguments, say: Callable[[str], None]
) -> int:
    """Start Ray on this machine and a cluster on it; returns the exit code after a signal.

    Raises:
        EngineStartFailed: the servers did not come up.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    say("starting Ray")
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=max(os.cpu_count() or 1, 1),
        object_store_memory=_OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        log_to_driver=True,
    )
    received = _Signals()  # Ray has set handlers of its own
    try:
        say(f"starting {servers.replicas} servers of {servers.settings['model']}")
        _run(servers, gateway)
        say(f"ready on {gateway.url}")
        received.wait()
        say("stopping: running calls may finish")
        _delete(servers.load().drain_seconds)
    except (_Stopped, SystemError):  # Ray's C code makes the second of the first
        if not received.is_set:
            raise
        say("stopped while starting")
    finally:
        received.is_up = True
        serve.shutdown()
        ray.shutdown()
    return 0


def deploy(servers: ServersArguments, gateway: GatewayArguments, address: str) -> None:
    """Deploy on an existing Ray, or upgrade what is there; returns when it is ready.

    Raises:
        EngineStartFailed: there is no such Ray, or the servers did not come up.
    """
    _connect(address)
    try:
        _run(servers, gateway)
    finally:
        ray.shutdown()


def remove(address: str) -> None:
    """Drain the cluster on an existing Ray, and remove it."""
    _connect(address)
    try:
        _delete(DRAIN_SECONDS)
    finally:
        ray.shutdown()


def _delete(drain_seconds: float) -> None:
    """The gateway first: its calls finish while their servers are there."""
    for application in (GATEWAY, SERVERS):
        deadline = time.monotonic() + drain_seconds + _STOP_SECONDS
        while time.monotonic() < deadline:
            with suppress(TimeoutError):  # after a minute, while it drains
                serve.delete(application)
                break


def _connect(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise EngineStartFailed(f"no Ray answers at {address}: {error}") from None


def _run(servers: ServersArguments, gateway: GatewayArguments) -> None:
    serve.start(proxy_location="Disabled")
    try:
        serve.run(build_servers(servers.model_dump()), name=SERVERS, route_prefix=None)
        serve.run(build_gateway(gateway.model_dump()), name=GATEWAY, route_prefix=None)
    except (RuntimeError, TimeoutError) as error:
        raise EngineStartFailed(f"the cluster did not come up: {_reason() or error}") from None


def _reason() -> str:
    """The last line of what Ray knows of the servers, such as how their process ended."""
    found = serve.status().applications.get(SERVERS)
    messages = [each.message for each in found.deployments.values()] if found else []
    lines = [line.strip() for each in messages for line in each.splitlines() if "Ended" in line]
    return lines[-1] if lines else ""
