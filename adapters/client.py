"""The catalog of a running server, over its admin API. RemoteCatalog has the methods of Catalog.

The server makes each change by its own rules: it loads a version that is pinned, and frees one that
is removed. The token identifies the actor; the `actor` of a call is not sent. The token goes to
that server alone: no redirect is followed, and a server on this machine is reached without the
environment's proxies.
"""

import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self, TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.parse import quote as percent_encode

import httpx2
import msgspec

from adapters.catalog.aliases import Alias, check_split
from adapters.catalog.history import Event
from adapters.catalog.versions import (
    AdapterVersion,
    Meaning,
    check_weight,
    explain_missing,
    interpret,
)
from adapters.errors import (
    AnswerUnclear,
    BadServerAddress,
    CheckpointInvalid,
    Problem,
    ServerRefused,
    ServerUnreachable,
    TokenMissing,
    quote,
)
from adapters.names import NAME, Reference, check_alias, check_publishable_name
from adapters.sources import FILES, local_folder
from adapters.store.files import SERVED, FileRefused, open_adapter_file

T = TypeVar("T")
Files = list[tuple[str, tuple[str, Any]]]  # as httpx2 takes them

QUICK_SECONDS = 30.0
SLOW_SECONDS = 900.0  # to judge a large adapter, or to load it after others
MAX_ANSWER_BYTES = 64 << 20
SHOWN_ANSWER = 2_000
PAGE = 100  # adapters
MOST_EVENTS = 1_000  # the most that a server returns at once

SET_TOKEN = (
    "set LORRY_ADMIN_TOKEN to the token that the server was started with,"
    " or name the file that holds it with --admin-token-file"
)


class _Said(msgspec.Struct):
    message: str
    code: str


class _Envelope(msgspec.Struct):
    error: _Said
    problems: list[Problem] = []


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
    residency: dict[str, bool]
    leases: int
    last_used: str | None


class _Uses(msgspec.Struct):
    versions: list[_Use]


class AdminHttp:
    """Sends requests to one server, with its token.

    Raises BadServerAddress or TokenMissing for an invalid address or token.
    """

    def __init__(self, url: str, token: str) -> None:
        address = _parse_url(url)
        if not token:
            raise TokenMissing("the server's admin token is not given", SET_TOKEN)
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise TokenMissing("the admin token that is given is not a valid one", SET_TOKEN)
        self._url = address.geturl().rstrip("/")
        self._options: dict[str, Any] = {
            # No compression: the size of an unpacked answer would have no bound.
            "headers": {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            "trust_env": not _is_loopback(address.hostname or ""),
            "verify": ssl.create_default_context(),  # trusts the system's authorities
        }

    def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        within: float = QUICK_SECONDS,
        **content: Any,
    ) -> T:
        """The server's answer; `content` are httpx2's arguments params, json, data and files.

        Raises ServerUnreachable, AnswerUnclear, ServerRefused, or CheckpointInvalid for an adapter
        that the server refuses.
        """
        status, text = self._send(method, f"{self._url}{path}", within, content)
        if not 200 <= status < 300:
            self._refuse(status, text)
        return self._read(text, answer, status)

    def _send(
        self, method: str, url: str, within: float, content: Mapping[str, Any]
    ) -> tuple[int, bytes]:
        text = bytearray()
        try:
            with (
                httpx2.Client(timeout=within, **self._options) as client,
                client.stream(method, url, **content) as response,
            ):
                for piece in response.iter_raw():
                    text += piece
                    if len(text) > MAX_ANSWER_BYTES:
                        raise AnswerUnclear(
                            f"{self._url} sends an endless answer", "check the address"
                        )
        # ValueError and ImportError come from a proxy's address in the environment.
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:
            raise self._explain_silence(error) from error
        return response.status_code, bytes(text)

    def _explain_silence(self, error: Exception) -> ServerUnreachable:
        if isinstance(error, httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError):
            return ServerUnreachable(
                f"{self._url} ended the connection: {_plain(str(error)) or type(error).__name__}",
                "the server's log may say why; `max_upload_bytes` bounds an upload",
            )
        is_late = isinstance(error, httpx2.TimeoutException)
        said = "it did not answer in time" if is_late else str(error)
        return ServerUnreachable(
            f"{self._url} cannot be reached: {_plain(said) or type(error).__name__}",
            "check the address, and that the server runs",
        )

    def _read(self, text: bytes, kind: type[T], status: int) -> T:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise AnswerUnclear(
                f"{self._url} answers unlike a server of this version (status {status})",
                "check the address, and that both sides are of one version",
            ) from error

    def _refuse(self, status: int, text: bytes) -> NoReturn:
        hint = SET_TOKEN if status in (401, 403) else ""
        if 300 <= status < 400:
            raise AnswerUnclear(
                f"{self._url} redirects elsewhere, where the token is not sent",
                "give the address that it redirects to, if that is the server's",
            )
        try:
            envelope = self._read(text, _Envelope, status)
        except AnswerUnclear:
            if not hint:
                raise
            said = f"{self._url} accepts no request without its token (status {status})"
            raise ServerRefused(said, hint, status=status) from None
        if envelope.problems:
            raise CheckpointInvalid(
                [
                    Problem(*map(_plain, (each.code, each.where, each.message, each.fix)))
                    for each in envelope.problems
                ]
            )
        message, code = _plain(envelope.error.message).rstrip("."), _plain(envelope.error.code)
        raise ServerRefused(message, hint, code=code, status=status)


def _parse_url(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        is_good = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        is_good = False
    if not is_good or not (url.isascii() and url.isprintable()) or " " in url:
        raise BadServerAddress(
            f"{quote(url.rpartition('@')[2])} is not the address of a server",
            "write http://HOST:PORT or https://HOST",
        )
    if "@" in address.netloc or address.query or address.fragment:
        raise BadServerAddress(
            "a server's address has no user, password, query or fragment", "leave them out"
        )
    return address


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(text: str) -> str:
    """A server's text, made safe for one line of a terminal."""
    shown = text[:SHOWN_ANSWER]
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in shown)


class RemoteCatalog:
    """Methods of Catalog, with the same errors, or a ServerError."""

    def __init__(self, server: AdminHttp) -> None:
        self._server = server

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

    def point(self, name: str, alias: str, version: int, *, actor: str) -> Alias:
        return self.split(name, alias, {version: 1}, actor=actor)

    def split(self, name: str, alias: str, weights: Mapping[int, int], *, actor: str) -> Alias:
        check_alias(alias)
        body = {"split": check_split(weights)}
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

    def weigh(self, name: str, weight: float, *, actor: str) -> None:
        body = {"weight": check_weight(weight)}
        self._server.ask("PUT", _path(name, "weight"), object, json=body)

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
    with ExitStack() as stack:
        files: Files = []
        problems = []
        for name in FILES:
            try:
                file = stack.enter_context(open_adapter_file(folder, name))
            except FileRefused as refused:
                if name in SERVED or refused.problem.code != "file_missing":
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
