"""The server that a scenario runs against: one that is running, or one that the tool starts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest.drive.actions import Switch
from loadtest.drive.client import Target
from loadtest.drive.discovery import Models
from loadtest.errors import LoadtestError, OptionsClash, OutUnwritable, ServerFailed
from loadtest.judge.spans import SpanReceiver
from loadtest.markers.manifest import Manifest, load_manifest
from loadtest.plan.scenario import Scenario
from loadtest.servers.command_lines import Kind, Setup
from loadtest.servers.llama_cpp import LlamaCpp
from loadtest.servers.serving import Served, serving

# One span per call: the exporter's default queue of 2,048 overflows at some hundred calls a second.
_SPANS = {"OTEL_BSP_MAX_QUEUE_SIZE": "100000", "OTEL_BSP_SCHEDULE_DELAY": "1000"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options about the server."""

    home: Path  # for marked adapters, stores and logs of started servers
    url: str | None = None
    serve: Path | None = None
    api_key: str | None = None
    admin_token: str | None = None
    markers: Path | None = None
    adapters: str = "*"
    processes: int = 1
    spans: int | None = None  # port to which a running server sends its spans


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The server that a scenario runs against, and what the tool may do with it."""

    target: Target
    description: str
    models: Models | None = None  # what it serves; None: read its list of models
    adapters: str = "*"  # glob that selects the run's adapters
    manifest: Manifest | None = None  # markers of the adapters, if they are marked
    admin_token: str | None = None
    switch: Switch | None = None  # power over a server that the tool started
    ended: Callable[[], LoadtestError | None] = lambda: None  # the error if it ended by itself
    spans: SpanReceiver | None = None
    processes: int = 1


@contextlib.asynccontextmanager
async def opened(scenario: Scenario, options: Options) -> AsyncIterator[Setting]:
    """The server to test, ready for calls.

    Raises:
        OptionsClash: neither or both of --url and --serve, or another load test is running.
        BaseUnfit: no marked adapters can be made for the base of --serve.
        ServerFailed: the started server did not come up.
    """
    if (options.url is None) == (options.serve is None):
        raise OptionsClash("give --url URL (a running server) or --serve BASE (start one)")
    if options.url is not None:
        async with contextlib.AsyncExitStack() as stack:
            spans = None
            if options.spans is not None:
                spans = await stack.enter_async_context(SpanReceiver(options.spans))
            yield _running(scenario, options, options.url, spans)
        return
    assert options.serve is not None
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(claimed(options.home))
        receiver = await stack.enter_async_context(SpanReceiver())
        manifest = marked_for(scenario, options.serve, options.home)
        variables = receiver.environment | _SPANS
        setup = setup_of(scenario, options.serve, manifest, options.home / "own", variables)
        served = await stack.enter_async_context(started("lorry", setup))
        yield setting_of(scenario, served, manifest, options.processes, receiver)


def _running(scenario: Scenario, options: Options, url: str, spans: SpanReceiver | None) -> Setting:
    if not url.startswith(("http://", "https://")):
        raise OptionsClash(f"--url {url}: give http://HOST:PORT or https://...")
    key = options.api_key
    return Setting(
        target=Target(
            url=url.rstrip("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout_seconds=scenario.timeout_seconds,
        ),
        description=_without_password(url),
        adapters=options.adapters,
        manifest=load_manifest(options.markers) if options.markers else None,
        admin_token=options.admin_token,
        spans=spans,
        processes=options.processes,
    )


def _without_password(url: str) -> str:
    """The address for reports, which get shared."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


@contextlib.contextmanager
def claimed(home: Path) -> Iterator[None]:
    """Lock the folder: its stores and logs belong to one load test at a time.

    Raises:
        OptionsClash: another load test uses the folder.
        OutUnwritable: the folder can't be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        file = (home / "lock").open("w")
    except OSError as error:
        raise OutUnwritable(f"can't write {home}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionsClash(
                f"another load test uses {home}: wait for it, or start this one in another folder"
            ) from None
        yield


def marked_for(scenario: Scenario, base: Path, home: Path) -> Manifest | None:
    """The scenario's marked adapters, made unless they exist; None if it needs none."""
    if not scenario.adapters:
        return None
    from loadtest.markers.marked import make_marked

    rank, linears = scenario.adapter_rank, scenario.adapter_linears
    size = f"{scenario.adapters}-r{rank}-{linears}"
    folder = home / "marked" / f"{base.resolve().name}-{size}"
    make_marked(base, folder, scenario.adapters, rank=rank, everywhere=linears == "all")
    return load_manifest(folder)


def setup_of(
    scenario: Scenario,
    base: Path,
    manifest: Manifest | None,
    work: Path,
    environment: Mapping[str, str],
    llama_cpp: LlamaCpp | None = None,
) -> Setup:
    """The set-up of a started server: the base, and version 1 of each marked adapter."""
    folders = {name: manifest.folder(name, 1) for name in manifest.names} if manifest else {}
    return Setup(
        base=base,
        name=base.resolve().name,
        work=work,
        options=scenario.server,
        adapters={name: folder for name, folder in folders.items() if folder},
        environment=environment,
        llama_cpp=llama_cpp,
    )


@contextlib.asynccontextmanager
async def started(kind: Kind, setup: Setup) -> AsyncIterator[Served]:
    """Like `serving`, without blocking the event loop."""
    context = serving(kind, setup)
    entering = asyncio.create_task(asyncio.to_thread(context.__enter__))
    try:
        served = await asyncio.shield(entering)
    except asyncio.CancelledError:  # the thread continues, and its server would stay
        setup.given_up.set()
        with contextlib.suppress(ServerFailed):
            await entering
            await asyncio.to_thread(context.__exit__, None, None, None)
        raise
    try:
        yield served
    finally:
        setup.given_up.set()  # an action may be restarting it
        await asyncio.to_thread(context.__exit__, None, None, None)


def setting_of(
    scenario: Scenario,
    served: Served,
    manifest: Manifest | None,
    processes: int,
    spans: SpanReceiver | None = None,
) -> Setting:
    async def stop() -> None:
        await asyncio.to_thread(served.stop)

    async def start() -> None:
        await asyncio.to_thread(served.start)

    async def kill_engine() -> None:
        await asyncio.to_thread(served.kill_engine)

    return Setting(
        target=Target(
            url=served.url,
            urls=dict(served.urls),
            fields=dict(served.fields),
            headers=dict(served.headers),
            timeout_seconds=scenario.timeout_seconds,
        ),
        description=f"{served.kind}, started for this",
        manifest=manifest,
        models=_models_of(served),
        admin_token=served.admin_token,
        switch=Switch(stop, start, kill_engine),
        ended=lambda: served.ended,
        spans=spans,
        processes=processes,
    )


def _models_of(served: Served) -> Models | None:
    """The models of servers that serve one model each; None for a server that lists them."""
    if served.fields:  # llama.cpp lists its base alone, and names it in each answer
        base, *adapters = served.fields
        return Models(base=base, adapters=sorted(adapters), is_lorry=False, names_itself=False)
    if not served.urls:
        return None
    return Models(base="", adapters=sorted(served.urls), is_lorry=False)
