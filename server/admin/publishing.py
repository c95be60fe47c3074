"""Publishing by a server: from an upload, an allowed source, or a watched folder.

Decides which sources are allowed; `adapters.publish` validates, hashes and stores the adapter, and
`adapters.watch` polls the folder in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from starlette.requests import Request

from adapters.catalog import AdapterVersion, Catalog
from adapters.compose import compose
from adapters.errors import BadName, unwritable
from adapters.names import STABLE
from adapters.publish import Rules, list_warnings, publish
from adapters.watch import Sighting, Watcher
from server.admin.bodies import Composition, Publication
from server.admin.uploads import ArrivingBody, take_upload
from server.errors import InvalidRequest, Unavailable
from server.settings import Settings

logger = logging.getLogger("lorry.watch")

_CONCURRENT = 2  # each takes space in the store, and a core to validate it
_TURN_SECONDS = 60.0
_RETRY_SECONDS = 10
_STOP_SECONDS = 10.0


class Publisher:
    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._store = settings.open_store()
        self._turns = asyncio.Semaphore(_CONCURRENT)

    async def publish_upload(self, request: Request, actor: str) -> AdapterVersion:
        """Publish the files of a multipart form: `name`, `alias` (any number) and the files.

        The body is read only when its turn comes. Raises Unavailable if the turn does not come.
        """
        content_type = request.headers["content-type"]
        async with self._turn():
            body = ArrivingBody(request)
            return await asyncio.to_thread(self._publish_form, content_type, body, actor)

    async def publish_source(self, source: str, wanted: Publication, actor: str) -> AdapterVersion:
        """Publish from a source that the settings allow; raises InvalidRequest for any other."""
        place = await asyncio.to_thread(self._locate, source)
        async with self._turn():
            return await asyncio.to_thread(
                self._publish_now, place, wanted.name, wanted.aliases, actor
            )

    async def publish_sum(self, name: str, wanted: Composition, actor: str) -> AdapterVersion:
        """Publish a sum of adapters of this catalog as a version of `name`."""
        self._check_name(name)
        async with self._turn():
            return await asyncio.to_thread(
                compose,
                name,
                wanted.sum,
                store=self._store,
                catalog=self._catalog,
                aliases=wanted.aliases,
                max_rank=self._settings.max_lora_rank,
                actor=actor,
            )

    def _check_name(self, name: str) -> None:
        if name == self._settings.base_name:
            raise BadName(f"the name {name!r} is the served base model's", "choose another name")

    def _locate(self, source: str) -> str | Path:
        """The address, or the folder below `admin_source_root`; raises InvalidRequest."""
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
        unfinished = self._store.tmp.resolve()  # other publications' files
        if (
            root is None
            or path is None
            or not path.is_relative_to(root.resolve())
            or path.is_relative_to(unfinished)
        ):
            raise InvalidRequest(
                "This server does not publish from that folder: upload the files, or name the "
                "folder that may be published from with LORRY_ADMIN_SOURCE_ROOT.",
                code="source_not_allowed",
                param="source",
            )
        return path

    def publish_watched(self, folder: Path, name: str) -> AdapterVersion:
        """Publish a complete folder; called in the thread of adapters/watch.py."""
        return self._publish_now(folder, name, (STABLE,), "watch", if_new=True)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable(
                "Other adapters are being published. Try again when they are done.",
                code="publishing_busy",
                retry_after=_RETRY_SECONDS,
            ) from None
        try:
            yield
        finally:
            self._turns.release()

    def _publish_form(self, content_type: str, body: Iterable[bytes], actor: str) -> AdapterVersion:
        try:
            with self._store.scratch() as folder:
                wanted = take_upload(content_type, body, folder)
                return self._publish_now(folder, wanted.name, wanted.aliases, actor)
        except OSError as error:
            raise unwritable(
                "the upload can't be written",
                error,
                "nothing was published: free space in the store, then try again",
            ) from error

    def _publish_now(
        self,
        place: str | Path,
        name: str,
        aliases: Sequence[str],
        actor: str,
        *,
        if_new: bool = False,
    ) -> AdapterVersion:
        settings = self._settings
        self._check_name(name)
        local = isinstance(place, Path)
        rules = Rules(
            base=Path(settings.model),
            base_name=settings.base_name,
            max_rank=settings.max_lora_rank,
            allow_base_mismatch=settings.allow_base_mismatch,
            schemes=frozenset({"file"} if local else settings.admin_source_schemes),
        )
        return publish(
            place,
            name=name,
            store=self._store,
            catalog=self._catalog,
            rules=rules,
            aliases=aliases,
            actor=actor,
            if_new=if_new,
        )


@contextmanager
def watching(folder: Path | None, publisher: Publisher) -> Iterator[None]:
    """Publish what appears in `folder`, if one is given, for the length of the block."""
    if folder is None:
        yield
        return
    watcher = Watcher(folder, publisher.publish_watched, _report)
    watcher.start()
    try:
        yield
    finally:
        if not watcher.stop(_STOP_SECONDS):
            logger.warning("stopped while an adapter was being published; the store is unchanged")


def _report(sighting: Sighting) -> None:
    is_good = sighting.status in ("published", "waiting")
    level = logging.INFO if is_good else logging.WARNING
    logger.log(level, "%s %s: %s", sighting.name, sighting.status, sighting.message)
    for warning in list_warnings(sighting.version) if sighting.version else ():
        logger.warning("%s: %s", sighting.name, warning)
