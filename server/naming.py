"""What the `model` of a request means: the base, or one immutable version of an adapter.

Never falls back to the base: a name that means nothing is an error.
"""

from __future__ import annotations

import asyncio
import logging

from adapters.catalog import AdapterVersion, Catalog, Published
from adapters.errors import AdapterError, AdapterNotFound, AmbiguousDigest, BadReference
from adapters.names import parse_reference
from server.errors import InvalidRequest, Unavailable, UnknownModel

logger = logging.getLogger("lorry.naming")

_SHOWN_CHARACTERS = 128


class ModelNames:
    def __init__(self, base: str, catalog: Catalog) -> None:
        self.base = base
        self._catalog = catalog

    async def resolve(self, model: str, key: str | None = None) -> AdapterVersion | None:
        """The version that `model` names now; None means the base.

        Accepts the base's name, `NAME[@VERSION|@ALIAS|@sha256:PREFIX]` and `BASE:NAME...`. Where
        an alias is split, `key` (who asks) decides the side; None is a chance one.

        Raises:
            UnknownModel: nothing by that name.
            InvalidRequest: a digest prefix that several versions share.
            Unavailable: the catalog can't be read.
        """
        if model == self.base:
            return None
        reference = model.removeprefix(f"{self.base}:")
        try:
            wanted = parse_reference(reference)
            # What was asked before is in memory; else it takes a thread, as databases may wait.
            found = self._catalog.remembered(wanted, key)
            return found or await asyncio.to_thread(self._catalog.resolve, wanted, key)
        except AmbiguousDigest as error:
            raise InvalidRequest(
                f"{error.message}; {error.hint}.", code="ambiguous_model", param="model"
            ) from None
        except (BadReference, AdapterNotFound):
            shown = model[:_SHOWN_CHARACTERS] + ("..." if len(model) > _SHOWN_CHARACTERS else "")
            raise UnknownModel(
                f"The model `{shown}` does not exist. GET /v1/models lists those that do.",
                param="model",
            ) from None
        except AdapterError as error:
            raise _unreadable(error) from None

    async def published(self) -> tuple[Published, ...]:
        """What a bare `NAME` means now, for every name that means something.

        The same object until the catalog changes.

        Raises:
            Unavailable: the catalog can't be read.
        """
        try:
            return await asyncio.to_thread(self._catalog.list_published)
        except AdapterError as error:
            raise _unreadable(error) from None


def _unreadable(error: AdapterError) -> Unavailable:
    logger.error("the catalog can't be read: %s", error)
    return Unavailable(
        "The list of adapters can't be read.", code="catalog_unreadable", retry_after=5
    )
