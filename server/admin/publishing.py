"""Publishing through the admin API: an upload, or a source that the operator allowed.

The judging, hashing and storing is adapters.publish's; here is what may come from where.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.requests import Request

from adapters.catalog import AdapterVersion, Catalog
from adapters.errors import StoreUnwritable
from adapters.names import STABLE
from adapters.publish import publish
from server.admin.bodies import Publication
from server.errors import InvalidRequest
from server.settings import Settings

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_FILES = 8
_MAX_FIELDS = 32
_MAX_FIELD_BYTES = 1024
_AT_ONCE = 2  # each takes a core to judge it


class Publisher:
    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def publish_upload(self, request: Request, actor: str) -> AdapterVersion:
        """Publish the files of a multipart form: `name`, `alias` (any number) and the files."""
        try:
            with tempfile.TemporaryDirectory(prefix="lorry-upload-") as scratch:
                folder = Path(scratch)
                wanted = await _take_form(request, folder)
                return await self._publish(folder, wanted, actor)
        except OSError as error:
            raise StoreUnwritable(
                f"the upload cannot be kept: {error.strerror or error}",
                "nothing was published: free space where temporary files go (TMPDIR)",
            ) from error

    async def publish_source(self, source: str, wanted: Publication, actor: str) -> AdapterVersion:
        """Publish from a place that a setting allows."""
        place = await asyncio.to_thread(self._find, source)
        return await self._publish(place, wanted, actor)

    def _find(self, source: str) -> str | Path:
        scheme, is_url, rest = source.partition("://")
        if is_url and scheme != "file":
            if scheme not in self._settings.admin_source_schemes:
                raise InvalidRequest(
                    f"This server does not publish from {scheme!r} sources: upload the files, or "
                    "allow the scheme with LORRY_ADMIN_SOURCE_SCHEMES.",
                    code="source_not_allowed",
                    param="source",
                )
            return source
        root = self._settings.admin_source_root
        path = None if root is None else (root / (rest if is_url else source)).resolve()
        if root is None or path is None or not path.is_relative_to(root.resolve()):
            raise InvalidRequest(
                "This server does not publish from that folder: upload the files, or name the "
                "folder that may be published from with LORRY_ADMIN_SOURCE_ROOT.",
                code="source_not_allowed",
                param="source",
            )
        return path

    def publish_watched(self, folder: Path, name: str) -> AdapterVersion:
        """What adapters/watch.py does with a complete folder, in its own thread."""
        return self._publish_now(folder, name, (STABLE,), "watch", if_new=True)

    async def _publish(self, place: str | Path, wanted: Publication, actor: str) -> AdapterVersion:
        async with self._turns:
            return await asyncio.to_thread(
                self._publish_now, place, wanted.name, wanted.aliases, actor
            )

    def _publish_now(
        self,
        place: str | Path,
        name: str,
        aliases: Sequence[str],
        actor: str,
        if_new: bool = False,
    ) -> AdapterVersion:
        settings = self._settings
        local = isinstance(place, Path)
        version = publish(
            place,
            name=name,
            store=settings.store,
            base=settings.model,
            base_name=settings.base_name,
            aliases=aliases,
            actor=actor,
            catalog_url=settings.catalog or None,
            max_rank=settings.max_lora_rank,
            allow_base_mismatch=settings.allow_base_mismatch,
            schemes=frozenset({"file"} if local else settings.admin_source_schemes),
            if_new=if_new,
        )
        self._catalog.refresh()  # it was written through a connection of its own
        return version


async def _take_form(request: Request, folder: Path) -> Publication:
    fields: dict[str, list[str]] = {"name": [], "alias": []}
    async with request.form(
        max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    ) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                await _take_file(value, folder)
            elif key in fields:
                fields[key].append(value)
            else:
                raise InvalidRequest(f"There is no form field {key[:64]!r}.", param=key[:64])
    if len(fields["name"]) != 1:
        raise InvalidRequest("Give one form field `name`.", param="name")
    given = {"aliases": [each for each in fields["alias"] if each]} if fields["alias"] else {}
    return Publication.model_validate({"name": fields["name"][0]} | given)


async def _take_file(upload: UploadFile, folder: Path) -> None:
    name = upload.filename or ""
    target = folder / name
    if not _FILE_NAME.fullmatch(name) or target.exists():
        raise InvalidRequest(
            "Each file of an upload needs a plain name of its own, as in the adapter's folder.",
            code="bad_file_name",
        )
    with target.open("xb") as file:
        await asyncio.to_thread(shutil.copyfileobj, upload.file, file, 1 << 20)
