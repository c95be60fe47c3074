"""Resolves the `model` of a request to the base or to one immutable version of an adapter.

Never falls back to the base: an unknown name is an error.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import lru_cache

from adapters.catalog import AdapterVersion, Catalog, Published
from adapters.errors import AdapterError, AdapterNotFound, AmbiguousDigest, BadReference
from adapters.keys import Key
from adapters.keys.record import matcher
from adapters.names import Reference, nearest, parse_reference
from server.errors import InvalidRequest, Unavailable, UnknownModel

logger = logging.getLogger("lorry.naming")

_SHOWN_CHARACTERS = 128
_HIDDEN = ""  # no adapter has this name


class ModelNames:
    def __init__(self, base: str, catalog: Catalog) -> None:
        self.base = base
        self._catalog = catalog

    async def resolve(
        self, model: str, side: str | None = None, key: Key | None = None
    ) -> AdapterVersion | None:
        """The version that `model` means now, for the caller of a key; None is the base.

        Accepts the base's name, `NAME[@VERSION|@ALIAS|@sha256:PREFIX]` and `BASE:NAME...`. For a
        split alias, `side` (such as the user) chooses the side; without one it is random.

        Raises:
            UnknownModel: there is no such model, or the key may not use it.
            InvalidRequest: several versions share the digest prefix.
            Unavailable: the catalog can't be read.
        """
        if model == self.base and may_use(key, None):
            return None
        reference = model.removeprefix(f"{self.base}:")
        try:
            wanted = _seen_by(key, parse_reference(reference))
            # From memory if it was resolved before; else in a thread, as a database may block.
            found = self._catalog.remembered(wanted, side)
            return found or await asyncio.to_thread(self._catalog.resolve, wanted, side)
        except AmbiguousDigest as error:
            raise InvalidRequest(
                f"{error.message}; {error.hint}.", code="ambiguous_model", param="model"
            ) from None
        except (BadReference, AdapterNotFound):
            raise await self._unknown(model, key) from None
        except AdapterError as error:
            raise _unreadable(error) from None

    async def _unknown(self, model: str, key: Key | None) -> UnknownModel:
        shown = model[:_SHOWN_CHARACTERS] + ("..." if len(model) > _SHOWN_CHARACTERS else "")
        said = f"The model `{shown}` does not exist."
        # In a thread: it takes a millisecond, and more for a long name.
        if meant := await asyncio.to_thread(self._guess, model, key):
            said += f" Did you mean `{meant}`?"
        return UnknownModel(f"{said} GET /v1/models lists those that do.", param="model")

    def _guess(self, model: str, key: Key | None) -> str | None:
        """The model that a misspelt one may have meant, of those that the key may use."""
        name, _, _ = model.removeprefix(f"{self.base}:").partition("@")
        bases = {self.base} if may_use(key, None) else set[str]()
        return nearest(name, bases) or nearest(name, _visible(self._catalog.names(), key))

    async def published(self) -> tuple[Published, ...]:
        """What each bare `NAME` means now; the same object until the catalog changes.

        Raises:
            Unavailable: the catalog can't be read.
        """
        try:
            return await asyncio.to_thread(self._catalog.list_published)
        except AdapterError as error:
            raise _unreadable(error) from None


def may_use(key: Key | None, name: str | None) -> bool:
    """Whether a caller may use the adapter of this name (None: the base), whatever its version.

    Without a key, where none are in force, it may use all.
    """
    return key is None or key.may_use(name)


def _seen_by(key: Key | None, wanted: Reference) -> Reference:
    """What a key may not use is looked up as a name that nobody has: the catalog is not asked, so
    neither the answer nor its time depends on whether there is such an adapter."""
    return wanted if may_use(key, wanted.name) else replace(wanted, name=_HIDDEN)


def _visible(names: frozenset[str], key: Key | None) -> frozenset[str]:
    return names if key is None else _matching(names, key.adapters)


@lru_cache(maxsize=32)
def _matching(names: frozenset[str], globs: tuple[str, ...]) -> frozenset[str]:
    return frozenset(filter(matcher(globs), names))


def _unreadable(error: AdapterError) -> Unavailable:
    logger.error("the catalog can't be read: %s", error)
    return Unavailable(
        "The list of adapters can't be read.", code="catalog_unreadable", retry_after=5
    )
