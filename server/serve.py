"""The server's process: start, serve, drain, end. Every way it ends has its own exit code.

HTTP is up from the start (/livez, /readyz and 503 for calls), while the engine starts beside it.
A signal lets running answers finish, up to a limit (server/signals.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from prometheus_client import REGISTRY, disable_created_metrics
from rich.console import Console

from adapters.catalog import Catalog
from adapters.checkpoint.base import Base, read_base
from adapters.errors import AdapterError
from server import signals
from server.admin.publishing import Publisher, watching
from server.assembly import Assembly
from server.errors import ENGINE_DIED_EXIT_CODE, ModelNotFound
from server.http.connections import ACCEPTED_AT_ONCE, Connections, Limits, Listener
from server.http.cors import Cors
from server.http.protocol import refuse_call
from server.lifecycle import Phase
from server.preflight import take_descriptors
from server.settings import Settings
from server.telemetry.logs import FORMAT_VARIABLE
from server.telemetry.tracing import take_exporter

if TYPE_CHECKING:
    from server.engine.build import RunningEngine  # imports vLLM

logger = logging.getLogger("lorry.serve")

_SIGNAL_SECONDS = 0.3  # for a signal that has ended the engine to arrive here too
_CUT_OFF_SECONDS = 2  # for connections to close after the drain
_DEAD_ANSWERS_SECONDS = 2  # for which a server with a dead engine still answers, with 503
_FAILED_CALLS_SECONDS = 5  # for the calls of a dead engine to end
_THREADS = 64  # they wait for the catalog or the disk


def serve(
    settings: Settings, extra: Sequence[str], listener: socket.socket, catalog: Catalog
) -> int:
    """Serve until a signal or the engine's death; returns the exit code.

    Raises:
        StartupError: the engine did not start.
    """
    server = Server(settings, extra, listener, catalog)
    try:
        with watching(settings.watch, server.publisher):
            return asyncio.run(server.run())
    finally:
        signals.ignore()


class Server:
    def __init__(
        self,
        settings: Settings,
        extra: Sequence[str],
        listener: socket.socket,
        catalog: Catalog,
    ) -> None:
        self._settings = settings
        self._extra = extra
        self._listener = Listener(fileno=listener.detach())
        self._catalog = catalog
        disable_created_metrics()  # they would double the number of series
        self._parts = Assembly(settings, catalog, REGISTRY, take_exporter(os.environ))
        self._lifecycle = self._parts.lifecycle
        self._stop = asyncio.Event()
        self._console = Console(stderr=True, highlight=False)
        self._connections = Connections(
            Limits(
                connections=take_descriptors(settings.max_connections, settings.most_copies),
                head_seconds=settings.head_seconds,
                keep_alive_seconds=settings.keep_alive_seconds,
            ),
            Cors(refuse_call, origins=settings.cors_origins),
        )
        self._http = HttpServer(
            uvicorn.Config(
                self._parts.app,
                http=self._connections,  # type: ignore[arg-type]  # makes the protocols
                ws="none",
                backlog=ACCEPTED_AT_ONCE,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_CUT_OFF_SECONDS,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
            )
        )

    @property
    def publisher(self) -> Publisher:
        return self._parts.publisher

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        signals.on_stop(partial(self._stop_soon, loop))
        loop.set_exception_handler(self._connections.on_loop_exception)
        # Python's default has 6 on two cores: a locked catalog would block loads and metrics.
        loop.set_default_executor(ThreadPoolExecutor(_THREADS, "lorry"))
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        stop = asyncio.create_task(self._stop.wait())
        running: RunningEngine | None = None
        supervision: asyncio.Task[None] | None = None
        try:
            running = await self._start_unless(stop)
            supervisor = self._parts.supervise(running.engine)
            supervision = asyncio.create_task(supervisor.run())
            ends = {supervision, stop, http}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if supervision.done() and (fault := supervision.exception()) is not None:
                logger.error("the engine can't be started again", exc_info=fault)
            return await (self._drain() if stop.done() else self._end_after_engine_death(stop))
        finally:
            stop.cancel()
            self._parts.disconnect()
            # HTTP before the engine: this cancels the calls that outlived the drain.
            self._http.should_exit = True
            await http
            if supervision is not None:
                supervision.cancel()
                await supervisor.close()
            if running is not None:
                await running.close()
            await self._parts.sharing.close()  # after the last call
            await asyncio.to_thread(self._parts.close)

    def _stop_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends anyway
            loop.call_soon_threadsafe(self._stop.set)

    async def _start_unless(self, stop: asyncio.Task[Any]) -> RunningEngine:
        start = asyncio.create_task(self._start_engine())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if start.done() and start.exception() is not None:
            # A signal to the process group may end a starting engine before it arrives here.
            await asyncio.wait({stop}, timeout=_SIGNAL_SECONDS)
        if stop.done() and (not start.done() or start.exception() is not None):
            # vLLM's start can't be cancelled; the engine process watches this one and ends too.
            self._say("stopped while starting")
            os._exit(0)
        return await start

    async def _start_engine(self) -> RunningEngine:
        settings = self._settings
        base = await asyncio.to_thread(self._read_base)
        await self._warn_name_clash()
        self._stage("importing vLLM")
        start_engine = await asyncio.to_thread(_import_engine)
        self._stage(f"starting the engine ({settings.model}, {settings.quantization})")
        parts = self._parts
        running = await start_engine(
            settings, self._extra, parts.metrics, parts.presence, parts.suspects
        )
        self._stage("loading pinned adapters")
        await self._parts.connect(running.engine, running.app, base)
        host, port = self._listener.getsockname()[:2]
        took = time.time() - self._parts.started
        scheme = "https" if settings.ssl_certfile else "http"
        self._say(f"ready on {scheme}://{host}:{port} after {took:.1f} s")
        return running

    async def _warn_name_clash(self) -> None:
        name = self._settings.base_name
        with contextlib.suppress(AdapterError):  # an unreadable catalog is reported elsewhere
            if await asyncio.to_thread(self._catalog.list_versions, name):
                logger.warning(
                    "an adapter has the base's name, %s, which means the base. Call the adapter "
                    "as %s:%s, or name the base with --served-model-name.",
                    *(name,) * 3,
                )

    def _read_base(self) -> Base:
        try:
            return read_base(Path(self._settings.model))
        except AdapterError as error:
            raise ModelNotFound(f"no adapters can be served on this model: {error}") from None

    async def _drain(self) -> int:
        self._lifecycle.advance(Phase.DRAINING)
        running = self._lifecycle.in_flight
        self._say(f"stopping: {running} call(s) may finish within {self._settings.drain_seconds} s")
        if not await self._lifecycle.wait_idle(self._settings.drain_seconds):
            logger.warning("%d call(s) were cut off", self._lifecycle.in_flight)
        return 0

    async def _end_after_engine_death(self, stop: asyncio.Task[Any]) -> int:
        self._lifecycle.advance(Phase.DEAD)
        logger.error("the engine has ended for good; the server shuts down")
        # New calls get a 503 with `engine_dead` rather than a closed port.
        await asyncio.wait({stop}, timeout=_DEAD_ANSWERS_SECONDS)
        await self._lifecycle.wait_idle(_FAILED_CALLS_SECONDS)
        return 0 if stop.done() else ENGINE_DIED_EXIT_CODE

    def _stage(self, words: str) -> None:
        self._lifecycle.stage = words
        self._say(words)

    def _say(self, words: str) -> None:
        if os.environ.get(FORMAT_VARIABLE) == "json":
            fields = {"event": "lifecycle", "phase": self._lifecycle.phase}
            logger.info(words, extra={"fields": fields})
        else:
            with contextlib.suppress(OSError):  # the terminal is closed, which is why it stops
                self._console.print(f"lorry: {words}", soft_wrap=True, markup=False)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: `Server` decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame


def _import_engine() -> Callable[..., Coroutine[Any, Any, RunningEngine]]:
    # Nearly all that an import makes stays: looking for garbage in it takes a sixth of the time.
    gc.disable()
    try:
        from server.engine.build import start_engine
    finally:
        gc.enable()
    return start_engine
