"""Resolves the `model` of a request to the base or to one immutable version of an adapter.

Never falls back to the base: an unknown name is an error.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import lru_cache

from adapters.catalog import AdapterVersion, Catalog, Published
from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    AmbiguousDigest,
    BadReference,
    SumInvalid,
    quote,
)
from adapters.keys import Key
from adapters.keys.record import matcher
from adapters.names import Reference, nearest, parse_reference
from adapters.sums import AdapterSum, Part, Term, add_up, is_sum, parse_sum
from server.errors import InvalidRequest, SumRefused, Unavailable, UnknownModel

logger = logging.getLogger("lorry.naming")

_SHOWN_CHARACTERS = 128
_HIDDEN = ""  # no adapter has this name


class ModelNames:
    """`max_sums` of 0: sums of adapters are refused."""

    def __init__(self, base: str, catalog: Catalog, max_sums: int = 1) -> None:
        self.base = base
        self._catalog = catalog
        self._max_sums = max_sums

    async def resolve(
        self, model: str, side: str | None = None, key: Key | None = None
    ) -> AdapterVersion | None:
        """The version that `model` means now, for the caller of a key; None is the base.

        Accepts the base's name, `NAME[@VERSION|@ALIAS|@sha256:PREFIX]`, sums of these
        (adapters/sums.py), and `BASE:...`. For a split alias, `side` (such as the user) chooses the
        side; without one it is random.

        Raises:
            UnknownModel: there is no such model, or no such part of a sum, or the key may not use
                it.
            SumRefused: it is written as a sum, and is none that can be served.
            InvalidRequest: several versions share the digest prefix.
            Unavailable: the catalog can't be read.
        """
        if model == self.base and may_use(key, None):
            return None
        reference = model.removeprefix(f"{self.base}:")
        if is_sum(reference):
            return await self._add_up(reference, side, key)
        return await self._find(model, reference, side, key)

    async def _add_up(self, text: str, side: str | None, key: Key | None) -> AdapterVersion | None:
        """Raises as `resolve` does; what is said of an unknown part is what is said of a model."""
        try:
            terms = parse_sum(text)
            for term in terms:
                self._refuse_base(term, key)
            parts = [
                Part(await self._find(term.reference, term.reference, side, key), term.weight)
                for term in terms
            ]
            found = add_up(parts)
        except SumInvalid as error:
            raise SumRefused(
                f"{error.message[0].upper()}{error.message[1:]}: {error.hint}."
            ) from None
        if found is None and not may_use(key, None):
            raise await self._unknown(text, key)
        if isinstance(found, AdapterSum) and not self._max_sums:
            raise SumRefused("This server serves no sums of adapters: start it with --max-sums.")
        return found

    def _refuse_base(self, term: Term, key: Key | None) -> None:
        if term.reference == self.base and may_use(key, None):
            said = f"the part {quote(term.reference)} is the base, which every sum is added to"
            raise SumInvalid(said, "leave it out")

    async def _find(
        self, model: str, reference: str, side: str | None, key: Key | None
    ) -> AdapterVersion:
        """The version of one adapter, a part of a sum too: the only place that looks one up, and
        that asks whether the key may use it.

        `model` is what an error calls it. Raises as `resolve` does.
        """
        try:
            wanted = _seen_by(key, parse_reference(reference))
            # From memory if it was resolved before; else in a thread, as a database may block.
            if (found := self._catalog.remembered(wanted, side)) is not None:
                return found
            return await asyncio.to_thread(self._catalog.resolve, wanted, side)
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
