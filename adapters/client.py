"""The catalog of a running server, behind its admin API: the same door as adapters.catalog's.

A change is made by the server, at once and under its own rules: it loads what is pinned and frees
what is removed. Who made it is told by the token; the `actor` of each call is not sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import msgspec

from adapters.admin_http import SLOW_SECONDS, AdminHttp
from adapters.catalog.aliases import Alias, check_split
from adapters.catalog.history import Event
from adapters.catalog.versions import AdapterVersion, Meaning, explain_missing, meaning_among
from adapters.errors import ServerRefused
from adapters.names import NAME, Reference, check_alias, check_publishable_name
from adapters.sources import local_folder
from adapters.upload import upload_form

MOST_EVENTS = 1_000  # that a server tells at once


class _Adapter(msgspec.Struct):
    aliases: list[Alias]
    versions: list[AdapterVersion]


class _Listing(msgspec.Struct):
    data: list[_Adapter]


class _Events(msgspec.Struct):
    data: list[Event]


class _Labels(msgspec.Struct):
    data: list[str]


class _Residency(msgspec.Struct):
    loading: bool
    host: bool
    device: bool


class _Use(msgspec.Struct):
    version: int
    residency: _Residency
    leases: int
    last_used: str | None


class _Uses(msgspec.Struct):
    versions: list[_Use]


class RemoteCatalog:
    """Methods are those of Catalog and raise what those do, or a ServerError."""

    def __init__(self, server: AdminHttp) -> None:
        self._server = server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open between two calls."""

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
        return self._server.ask("GET", path, _Events, query={"limit": limit or MOST_EVENTS}).data

    def publish(self, source: str, *, name: str, aliases: Sequence[str]) -> AdapterVersion:
        """Send a folder's files, or an address that the server may publish from."""
        check_publishable_name(name)
        for alias in aliases:
            check_alias(alias)
        folder = local_folder(source)
        if folder is None:
            wanted = {"name": name, "aliases": aliases, "source": source}
            return self._publish(body=wanted)
        fields = [("name", name), *(("alias", alias) for alias in aliases or ("",))]
        with upload_form(folder, fields) as form:
            # A server that is elsewhere, or does not know the token, says so before gigabytes go.
            self._list(name)
            return self._publish(content=form)

    def point(self, name: str, alias: str, version: int, *, actor: str) -> Alias:
        return self.split(name, alias, {version: 1}, actor=actor)

    def split(self, name: str, alias: str, weights: Mapping[int, int], *, actor: str) -> Alias:
        check_alias(alias)
        body = {"split": check_split(weights)}
        return self._server.ask("PUT", _path(name, "aliases", alias), Alias, body=body)

    def drop_alias(self, name: str, alias: str, *, actor: str) -> None:
        check_alias(alias)
        self._server.ask("DELETE", _path(name, "aliases", alias), object)

    def rollback(self, name: str, alias: str, *, actor: str, to: int | None = None) -> Alias:
        check_alias(alias)
        path = f"{_path(name, 'aliases', alias)}/rollback"
        return self._server.ask("POST", path, Alias, body={"to": to})

    def pin(self, name: str, version: int, *, actor: str) -> AdapterVersion:
        """It is also loaded."""
        path = _path(name, "versions", version, "pin")
        return self._server.ask("POST", path, AdapterVersion, within=SLOW_SECONDS)

    def unpin(self, name: str, version: int, *, actor: str) -> AdapterVersion:
        return self._server.ask("DELETE", _path(name, "versions", version, "pin"), AdapterVersion)

    def remove(self, name: str, version: int, *, actor: str) -> None:
        path = _path(name, "versions", version)
        self._server.ask("DELETE", path, object, within=SLOW_SECONDS)

    def load(self, reference: Reference) -> list[str]:
        """Make resident what a reference means now; the labels of what that is."""
        return self._move(reference, "load")

    def unload(self, reference: Reference) -> list[str]:
        """Free what a reference means now; the labels of what that is."""
        return self._move(reference, "unload")

    def describe_use(self, version: AdapterVersion) -> dict[str, Any]:
        """Where a version is resident, how many calls use it, and when one last did."""
        uses = self._server.ask("GET", _path(version.name), _Uses).versions
        for use in uses:
            if use.version == version.version:
                places = [
                    place for place, there in msgspec.to_builtins(use.residency).items() if there
                ]
                return {"residency": places, "leases": use.leases, "last_used": use.last_used}
        raise explain_missing(Reference(version.name, version.version), [])

    def _find(self, reference: Reference) -> Meaning:
        found = self._list(reference.name)
        versions = [version for each in found for version in each.versions]
        aliases = [alias for each in found for alias in each.aliases]
        return meaning_among(reference, versions, aliases)

    def _list(self, name: str | None = None) -> list[_Adapter]:
        """All adapters, or the one of that name if there is one."""
        if name is None:
            return self._server.ask("GET", "/admin/adapters", _Listing).data
        try:
            return [self._server.ask("GET", _path(name), _Adapter)]
        except ServerRefused as refused:
            if refused.code == "adapter_not_found":
                return []
            raise

    def _publish(self, **options: Any) -> AdapterVersion:
        path = "/admin/adapters"
        return self._server.ask("POST", path, AdapterVersion, within=SLOW_SECONDS, **options)

    def _move(self, reference: Reference, how: str) -> list[str]:
        path = f"/admin/adapters/{quote(str(reference), safe='@:')}/{how}"
        return self._server.ask("POST", path, _Labels, within=SLOW_SECONDS).data


def _path(name: str, *rest: object) -> str:
    """The path of an adapter, or of what is below it; raises AdapterNotFound for no name at all."""
    if not NAME.fullmatch(name):
        raise explain_missing(Reference(name), [])
    return "/".join(("/admin/adapters", name, *map(str, rest)))
