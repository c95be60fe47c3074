"""Brings a cluster up on Ray, and down again."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

import ray
from ray import serve

from cluster.app import build_gateway, build_servers
from cluster.arguments import GATEWAY, SERVERS, GatewayArguments, ServersArguments
from server.errors import EngineStartFailed

_OBJECT_STORE_BYTES = 80 << 20  # nothing of ours goes through it


def run_here(
    servers: ServersArguments, gateway: GatewayArguments, say: Callable[[str], None]
) -> int:
    """Start Ray on this machine and a cluster on it; returns the exit code after Ctrl-C or SIGTERM.

    Raises:
        EngineStartFailed: the servers did not come up.
    """
    stop = threading.Event()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    say("starting Ray")
    ray.init(
        include_dashboard=False,
        num_cpus=max(os.cpu_count() or 1, 1),
        object_store_memory=_OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        log_to_driver=True,
    )
    try:
        say(f"starting {servers.replicas} servers of {servers.settings['model']}")
        _run(servers, gateway)
        say(f"ready on http://{gateway.host}:{gateway.port}")
        stop.wait()
        say("stopping: running calls may finish")
        serve.delete(GATEWAY)
        serve.delete(SERVERS)
    finally:
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
        serve.delete(GATEWAY)
        serve.delete(SERVERS)
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineStartFailed(f"no Ray answers at {address}: {error}") from None


def _run(servers: ServersArguments, gateway: GatewayArguments) -> None:
    serve.start(proxy_location="Disabled")
    try:
        serve.run(build_servers(servers.model_dump()), name=SERVERS, route_prefix=None)
        serve.run(build_gateway(gateway.model_dump()), name=GATEWAY, route_prefix=None)
    except (RuntimeError, TimeoutError) as error:
        raise EngineStartFailed(f"the cluster did not come up: {error}") from None
