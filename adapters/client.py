"""The catalog of a running server, over its admin API. RemoteCatalog has the methods of Catalog.

The server makes each change by its own rules: it loads a version that is pinned, and frees one that
is removed. The token identifies the actor; the `actor` of a call is not sent.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote as percent_encode

import msgspec

from adapters.accounts import RemoteLimits, RemoteUsage
from adapters.admin_http import AdminHttp
from adapters.catalog.aliases import Alias, check_split
from adapters.catalog.evaluations import (
    NO_GATE,
    Evaluation,
    Evaluations,
    Gate,
    Recorded,
    check_evaluation,
    check_metric,
)
from adapters.catalog.history import Event
from adapters.catalog.versions import (
    AdapterVersion,
    Meaning,
    check_weight,
    explain_missing,
    interpret,
)
from adapters.checkpoint.mlx import is_mlx
from adapters.errors import AnswerUnclear, CheckpointInvalid, Problem, ServerRefused
from adapters.keys.remote import RemoteKeys
from adapters.names import NAME, Reference, check_alias, check_publishable_name
from adapters.sources import FILES, local_folder
from adapters.store.files import CONFIG, MLX, SERVED, FileRefused, open_adapter_file

Files = list[tuple[str, tuple[str, Any]]]  # as httpx2 takes them

SLOW_SECONDS = 900.0  # to judge a large adapter, or to load it after others
PAGE = 100  # adapters
MOST_EVENTS = 1_000  # the most that a server returns at once


class _Adapter(msgspec.Struct):
    aliases: list[Alias]
    versions: list[AdapterVersion]


class _Page(msgspec.Struct):
    data: list[_Adapter]
    last_id: str | None = None
    has_more: bool = False


class _Events(msgspec.Struct):
    data: list[Event]


class _Labels(msgspec.Struct):
    data: list[str]


class _Use(msgspec.Struct):
    version: int
    evaluations: list[Recorded]
    residency: dict[str, bool]
    leases: int
    last_used: str | None


class _Uses(msgspec.Struct):
    versions: list[_Use]


class RemoteCatalog:
    """Methods of Catalog, with the same errors, or a ServerError."""

    def __init__(self, server: AdminHttp) -> None:
        self._server = server
        self.limits = RemoteLimits(server)
        self.usage = RemoteUsage(server)
        self.keys = RemoteKeys(server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: each call has a connection of its own."""

    def resolve(self, reference: Reference, key: str | None = None) -> AdapterVersion:
        return self._find(reference).choose(key)

    def resolve_only(self, reference: Reference) -> AdapterVersion:
        return self._find(reference).only()

    def list_versions(self) -> list[AdapterVersion]:
        return [version for each in self._list() for version in each.versions]

    def list_aliases(self) -> list[Alias]:
        return [alias for each in self._list() for alias in each.aliases]

    def list_events(self, name: str | None = None, limit: int | None = None) -> list[Event]:
        """At most the last MOST_EVENTS, oldest first."""
        path = "/admin/history" if name is None else f"{_path(name)}/history"
        return self._server.ask("GET", path, _Events, params={"limit": limit or MOST_EVENTS}).data

    def publish(self, source: str, *, name: str, aliases: Sequence[str]) -> AdapterVersion:
        """Send the files of a folder, or an address that the server publishes from."""
        check_publishable_name(name)
        for alias in aliases:
            check_alias(alias)
        folder = local_folder(source)
        if folder is None:
            wanted = {"name": name, "aliases": aliases, "source": source}
            return self._publish(json=wanted)
        fields = {"name": name, "alias": list(aliases) or [""]}
        with _opened_files(folder) as files:
            # A wrong address or token is reported before gigabytes are sent.
            self._list(name)
            return self._publish(data=fields, files=files)

    def compose(self, name: str, text: str, *, aliases: Sequence[str]) -> AdapterVersion:
        """Publish a sum of the server's adapters."""
        check_publishable_name(name)
        for alias in aliases:
            check_alias(alias)
        body = {"sum": text, "aliases": list(aliases)}
        path = _path(name, "compose")
        return self._server.ask("POST", path, AdapterVersion, within=SLOW_SECONDS, json=body)

    def point(
        self, name: str, alias: str, version: int, *, actor: str, gate: Gate = NO_GATE
    ) -> Alias:
        return self.split(name, alias, {version: 1}, actor=actor, gate=gate)

    def split(
        self,
        name: str,
        alias: str,
        weights: Mapping[int, int],
        *,
        actor: str,
        gate: Gate = NO_GATE,
    ) -> Alias:
        check_alias(alias)
        body = {"split": check_split(weights), "gate": gate.metric, "force": gate.forced}
        return self._server.ask("PUT", _path(name, "aliases", alias), Alias, json=body)

    def drop_alias(self, name: str, alias: str, *, actor: str) -> None:
        check_alias(alias)
        self._server.ask("DELETE", _path(name, "aliases", alias), object)

    def rollback(self, name: str, alias: str, *, actor: str, to: int | None = None) -> Alias:
        check_alias(alias)
        path = f"{_path(name, 'aliases', alias)}/rollback"
        return self._server.ask("POST", path, Alias, json={"to": to})

    def pin(self, name: str, version: int, *, actor: str) -> AdapterVersion:
        """The server also loads it."""
        path = _path(name, "versions", version, "pin")
        return self._server.ask("POST", path, AdapterVersion, within=SLOW_SECONDS)

    def unpin(self, name: str, version: int, *, actor: str) -> AdapterVersion:
        return self._server.ask("DELETE", _path(name, "versions", version, "pin"), AdapterVersion)

    def evaluate(self, name: str, version: int, evaluation: Evaluation, *, actor: str) -> Recorded:
        check_evaluation(evaluation)
        path = _path(name, "versions", version, "evaluations")
        return self._server.ask("POST", path, Recorded, json=msgspec.to_builtins(evaluation))

    def list_evaluations(self, *names: str) -> Evaluations:
        return {
            (name, each.version): each.evaluations
            for name in names
            for each in self._server.ask("GET", _path(name), _Uses).versions
        }

    def weigh(self, name: str, weight: float, *, actor: str) -> None:
        body = {"weight": check_weight(weight)}
        self._server.ask("PUT", _path(name, "weight"), object, json=body)

    def set_gate(self, name: str, metric: str | None, *, actor: str) -> None:
        if metric is not None:
            check_metric(metric)
        self._server.ask("PUT", _path(name, "gate"), object, json={"metric": metric})

    def remove(self, name: str, version: int, *, actor: str) -> None:
        path = _path(name, "versions", version)
        self._server.ask("DELETE", path, object, within=SLOW_SECONDS)

    def load(self, reference: Reference) -> list[str]:
        """Load every version that a reference means now; returns their labels."""
        return self._move(reference, "load")

    def unload(self, reference: Reference) -> list[str]:
        """Unload every version that a reference means now; returns their labels."""
        return self._move(reference, "unload")

    def describe_use(self, version: AdapterVersion) -> dict[str, Any]:
        """Where a version is resident, how many calls use it, and when one last used it."""
        uses = self._server.ask("GET", _path(version.name), _Uses).versions
        for use in uses:
            if use.version == version.version:
                places = [place for place, is_there in use.residency.items() if is_there]
                return {"residency": places, "leases": use.leases, "last_used": use.last_used}
        raise explain_missing(Reference(version.name, version.version))

    def _find(self, reference: Reference) -> Meaning:
        found = self._list(reference.name)
        versions = [version for each in found for version in each.versions]
        aliases = [alias for each in found for alias in each.aliases]
        weights = interpret(reference, {each.version: each.digest for each in versions}, aliases)
        meant = (each for each in versions if each.version in weights)
        return Meaning(reference, tuple(meant), weights)

    def _list(self, name: str | None = None) -> list[_Adapter]:
        """All adapters, or the one of that name, if it exists."""
        if name is None:
            return list(self._pages())
        try:
            return [self._server.ask("GET", _path(name), _Adapter)]
        except ServerRefused as refused:
            if refused.code == "adapter_not_found":
                return []
            raise

    def _pages(self) -> Iterator[_Adapter]:
        """All adapters, by name. What is published meanwhile may be missing."""
        asked: dict[str, Any] = {"limit": PAGE}
        while True:
            page = self._server.ask("GET", "/admin/adapters", _Page, params=asked)
            yield from page.data
            if not page.has_more:
                return
            if page.last_id in (None, asked.get("after")):
                raise AnswerUnclear("the server's list of adapters has no end", "check the address")
            asked["after"] = page.last_id

    def _publish(self, **options: Any) -> AdapterVersion:
        path = "/admin/adapters"
        return self._server.ask("POST", path, AdapterVersion, within=SLOW_SECONDS, **options)

    def _move(self, reference: Reference, how: str) -> list[str]:
        path = f"/admin/adapters/{percent_encode(str(reference), safe='@:')}/{how}"
        return self._server.ask("POST", path, _Labels, within=SLOW_SECONDS).data


class _Steady:
    """A file to send. `read` raises CheckpointInvalid if its size changes meanwhile."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._left = file.seek(0, os.SEEK_END)
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        piece = self._file.read(size)
        self._left -= len(piece)
        if self._left < 0 or (self._left and not piece):
            changed = Problem(
                "file_changed",
                self._name,
                "changed while it was sent",
                "publish a folder that no program writes to",
            )
            raise CheckpointInvalid([changed])
        return piece


@contextmanager
def _opened_files(folder: Path) -> Iterator[Files]:
    """An adapter's own files, opened to be read from disk while they are sent.

    Raises CheckpointInvalid for files that can't be read.
    """
    of_mlx = is_mlx(folder)
    needed = (CONFIG,) if of_mlx else SERVED
    with ExitStack() as stack:
        files: Files = []
        problems = []
        for name in FILES if of_mlx else (name for name in FILES if name not in MLX):
            try:
                file = stack.enter_context(open_adapter_file(folder, name))
            except FileRefused as refused:
                if name in needed or refused.problem.code != "file_missing":
                    problems.append(refused.problem)
            else:
                files.append(("file", (name, _Steady(name, file))))
        if problems:
            raise CheckpointInvalid(problems)
        yield files


def _path(name: str, *rest: object) -> str:
    """The path of an adapter or of a part of it; raises AdapterNotFound for an invalid name."""
    if not NAME.fullmatch(name):
        raise explain_missing(Reference(name))
    return "/".join(("/admin/adapters", name, *map(str, rest)))
