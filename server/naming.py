"""Resolves the `model` of a request to the base or to one immutable version of an adapter.

Never falls back to the base: an unknown name is an error.
"""

from __future__ import annotations

import asyncio
import logging

from adapters.catalog import AdapterVersion, Catalog, Published
from adapters.errors import AdapterError, AdapterNotFound, AmbiguousDigest, BadReference
from adapters.names import nearest, parse_reference
from server.errors import InvalidRequest, Unavailable, UnknownModel

logger = logging.getLogger("lorry.naming")

_SHOWN_CHARACTERS = 128


class ModelNames:
    def __init__(self, base: str, catalog: Catalog) -> None:
        self.base = base
        self._catalog = catalog

    async def resolve(self, model: str, key: str | None = None) -> AdapterVersion | None:
        """The version that `model` means now; None is the base.

        Accepts the base's name, `NAME[@VERSION|@ALIAS|@sha256:PREFIX]` and `BASE:NAME...`. For a
        split alias, `key` (such as the user) chooses the side; without one it is random.

        Raises:
            UnknownModel: there is no such model.
            InvalidRequest: several versions share the digest prefix.
            Unavailable: the catalog can't be read.
        """
        if model == self.base:
            return None
        reference = model.removeprefix(f"{self.base}:")
        try:
            wanted = parse_reference(reference)
            # From memory if it was resolved before; else in a thread, as a database may block.
            found = self._catalog.remembered(wanted, key)
            return found or await asyncio.to_thread(self._catalog.resolve, wanted, key)
        except AmbiguousDigest as error:
            raise InvalidRequest(
                f"{error.message}; {error.hint}.", code="ambiguous_model", param="model"
            ) from None
        except (BadReference, AdapterNotFound):
            raise await self._unknown(model) from None
        except AdapterError as error:
            raise _unreadable(error) from None

    async def _unknown(self, model: str) -> UnknownModel:
        shown = model[:_SHOWN_CHARACTERS] + ("..." if len(model) > _SHOWN_CHARACTERS else "")
        said = f"The model `{shown}` does not exist."
        # In a thread: it takes a millisecond, and more for a long name.
        if meant := await asyncio.to_thread(self._guess, model):
            said += f" Did you mean `{meant}`?"
        return UnknownModel(f"{said} GET /v1/models lists those that do.", param="model")

    def _guess(self, model: str) -> str | None:
        """The model that a misspelt one may have meant."""
        name, _, _ = model.removeprefix(f"{self.base}:").partition("@")
        return nearest(name, {self.base}) or self._catalog.nearest(name)

    async def published(self) -> tuple[Published, ...]:
        """What each bare `NAME` means now; the same object until the catalog changes.

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
