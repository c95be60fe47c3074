"""Starts and stops each kind of server under test: Lorry and its peers."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadtest.errors import ServerFailed
from loadtest.servers import command_lines as commands
from loadtest.servers import environment, llama_cpp, processes
from loadtest.servers.command_lines import Kind, Setup
from loadtest.servers.environment import cleaned
from loadtest.servers.launch import Launch, free_port, last_line

_PREPARE_SECONDS = 600.0
_KEPT_FREE = 1 << 30  # bytes for the load generator and the system


@dataclass(slots=True)
class Served:
    """A running server; of the kind `merged` several processes, one for each model."""

    kind: Kind
    launches: list[Launch]
    urls: dict[str, str] = field(
        default_factory=dict
    )  # by model, for models with a process of their own
    # By model, what its calls' bodies say besides, for a server that reads more than `model`.
    fields: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # of each call
    admin_token: str | None = field(default=None, repr=False)
    fits: int | None = None  # merged: processes that fit into memory

    @property
    def url(self) -> str:
        return self.launches[0].url

    @property
    def sessions(self) -> list[int]:
        return [launch.session for launch in self.launches]

    @property
    def ended(self) -> ServerFailed | None:
        """The error if a process has ended by itself."""
        return next((launch.ended for launch in self.launches if launch.ended), None)

    @property
    def start_seconds(self) -> float:
        """The sum, because they start one after the other."""
        return sum(launch.start_seconds for launch in self.launches)

    @property
    def held_bytes(self) -> int:
        """Memory held now, each shared page counted once (PSS)."""
        return sum(map(processes.held_bytes, self.sessions))

    def start(self) -> None:
        """Restart it with the same address and store; raises ServerFailed."""
        for launch in self.launches:
            launch.start()

    def stop(self) -> None:
        for launch in self.launches:
            launch.stop()

    def kill_engine(self) -> None:
        """Kill the engine's process once the server is ready; raises ServerFailed."""
        for launch in self.launches:
            launch.kill_engine()

    def freeze(self) -> None:
        """Stop its processes without ending them."""
        for session in self.sessions:
            processes.send(session, signal.SIGSTOP)

    def thaw(self) -> None:
        for session in self.sessions:
            processes.send(session, signal.SIGCONT)


@contextlib.contextmanager
def serving(kind: Kind, setup: Setup) -> Iterator[Served]:
    """A server of this kind within a `with` block.

    Raises:
        ServerFailed: names the last line of its log, and the log.
    """
    with contextlib.ExitStack() as stack:
        try:
            setup.work.mkdir(parents=True, exist_ok=True)
            served = _start_kind(kind, setup, stack)
        except OSError as error:
            raise ServerFailed(f"can't write below {setup.work}: {error}") from None
        yield served


def _start_kind(kind: Kind, setup: Setup, stack: contextlib.ExitStack) -> Served:
    match kind:
        case "lorry" | "plain" | "limited":
            return _start_lorry(kind, setup, stack)
        case "merged":
            return _start_merged(setup, stack)
        case "peft":
            port = free_port()
            return Served(kind, [_start(stack, setup, kind, port, commands.peft(setup, port))])
        case "llamacpp":
            return _start_llama_cpp(setup, stack)
        case _:
            return _start_vllm(kind, setup, stack)


def _start_vllm(kind: Kind, setup: Setup, stack: contextlib.ExitStack) -> Served:
    port = free_port()
    command = commands.stock_base if kind == "stock-base" else commands.stock
    settings = environment.stock() if kind == "stock" else environment.tuned()
    return Served(kind, [_start(stack, setup, kind, port, command(setup, port), settings)])


def _start_llama_cpp(setup: Setup, stack: contextlib.ExitStack) -> Served:
    assert setup.llama_cpp is not None, "compare gives it to this peer"
    adapters, folder = list(setup.adapters), setup.work.resolve() / "gguf"
    folder.mkdir(exist_ok=True)
    files = [_convert(setup, setup.llama_cpp, setup.adapters[name], folder) for name in adapters]
    port = free_port()
    command = llama_cpp.serve(setup.llama_cpp, setup.name, files, port)
    launch = _start(stack, setup, "llamacpp", port, command)
    return Served(
        *("llamacpp", [launch]),
        fields=llama_cpp.fields(setup.name, adapters),
        headers=llama_cpp.HEADERS,
    )


def _convert(setup: Setup, llama: llama_cpp.LlamaCpp, adapter: Path, folder: Path) -> Path:
    """The adapter as GGUF, made unless an earlier run made it."""
    out = folder / llama_cpp.converted_name(adapter)
    if not out.exists():
        draft = out.with_suffix(".partial.gguf")
        _run(setup, llama_cpp.convert(llama, setup.base, adapter, draft), setup.work / "gguf.log")
        draft.rename(out)
    return out


def _start_lorry(kind: Kind, setup: Setup, stack: contextlib.ExitStack) -> Served:
    store, port, token = _make_store(setup), free_port(), secrets.token_urlsafe(24)
    settings = {
        "LORRY_ADMIN_TOKEN": token,
        "LORRY_KV_CACHE_GIB": str(setup.options.kv_cache_gib),
        **setup.environment,
    }
    command = commands.plain if kind == "plain" else commands.lorry
    arguments = command(setup, port, store)
    launch = _start(stack, setup, kind, port, arguments, settings, ready="/readyz")
    headers = {"authorization": f"Bearer {_make_key(store)}"} if kind == "limited" else {}
    return Served(kind, [launch], admin_token=token, headers=headers)


def _make_key(store: Path) -> str:
    """The secret of a key that the server has from now on."""
    command = commands.make_key(store)
    done = subprocess.run(
        command, env=cleaned(os.environ), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2]
        raise ServerFailed(f"`{' '.join(command[1:5])}` ended with code {done.returncode}: {said}")
    return done.stdout.strip()


def _start_merged(setup: Setup, stack: contextlib.ExitStack) -> Served:
    """Start as many as memory holds, but at least one."""
    before = available_bytes()
    served = Served("merged", [])
    largest = 0
    for name in setup.adapters:
        if available_bytes() < largest + _KEPT_FREE:
            break
        model, port = setup.work.resolve() / "merged" / name, free_port()
        _run(setup, commands.merge(setup, name, model), setup.work / "merge.log")
        command = commands.merged(setup, name, model, port)
        launch = _start(stack, setup, f"merged-{name}", port, command, environment.stock())
        served.launches.append(launch)
        served.urls[name] = launch.url
        largest = max(largest, processes.peak_bytes(launch.session))
    if not served.launches:
        raise ServerFailed("there is no adapter to merge: the scenario needs `adapters`")
    served.fits = (before - _KEPT_FREE) // (served.held_bytes // len(served.launches))
    return served


def _start(
    stack: contextlib.ExitStack,
    setup: Setup,
    name: str,
    port: int,
    command: Sequence[str],
    settings: Mapping[str, str] = MappingProxyType({}),
    ready: str = "/health",
) -> Launch:
    log = setup.work.resolve() / f"{name}.log"
    log.unlink(missing_ok=True)
    variables = {**environment.neutral(setup.work.resolve() / "cache"), **settings}
    launch = Launch(command, variables, port=port, ready=ready, log=log, given_up=setup.given_up)
    launch.start()
    stack.callback(launch.stop)
    return launch


def _make_store(setup: Setup) -> Path:
    """Make a new store with version 1 of each adapter."""
    store, drop = setup.work.resolve() / "store", setup.work.resolve() / "drop"
    for old in (store, drop):
        shutil.rmtree(old, ignore_errors=True)
    drop.mkdir()
    for name, folder in setup.adapters.items():
        shutil.copytree(folder, drop / name, copy_function=_link)
    _run(setup, commands.publish(setup, drop, store), setup.work / "publish.log")
    shutil.rmtree(drop)
    return store


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _run(setup: Setup, command: Sequence[str], log: Path) -> None:
    variables = cleaned(os.environ) | environment.neutral(setup.work.resolve() / "cache")
    with log.open("wb") as stream:
        try:
            code = subprocess.run(
                command,
                cwd=setup.work,
                env=variables,
                stdout=stream,
                stderr=stream,
                timeout=_PREPARE_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    if code != 0:
        how = (
            f"did not end in {_PREPARE_SECONDS:.0f} s"
            if code is None
            else f"ended with code {code}"
        )
        raise ServerFailed(
            f"`{' '.join(command[1:5])}` {how}; it said last: {last_line(log)} ({log})"
        )


def available_bytes() -> int:
    """Memory that new processes may use without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024
