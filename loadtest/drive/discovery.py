"""A server's base and adapters, as GET /v1/models lists them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import aiohttp
import msgspec

from loadtest.drive.fetch import MAX_BYTES, fetch
from loadtest.errors import TargetUnfit


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """The models of a server."""

    base: str
    adapters: list[str]  # sorted by name
    is_lorry: bool
    names_itself: bool = True  # False: an answer's `model` is not the requested one
    # The version that each bare name means now, from Lorry; 0: a split between several.
    stable: dict[str, int] = {}


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None
    owned_by: str | None = None
    version: int | None = None
    split: dict[str, Any] | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


async def discover(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    *,
    wanted: str = "*",
    needed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Models:
    """Read the list of models of Lorry or of vLLM's own server.

    Args:
        wanted: glob that selects adapters by name.
        needed: number of selected adapters that must be there.

    Raises:
        TargetUnfit: the server can't be reached, its list is invalid, or lacks a base or adapters.
    """
    address = f"{url.rstrip('/')}/v1/models"
    body = await fetch(session, address, headers, max_bytes=max_bytes)
    try:
        cards = msgspec.json.decode(body, type=_Cards).data
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TargetUnfit(
            f"{address} is not a list of models ({error}): is this an OpenAI-compatible server?"
        ) from None
    models = _read(address, cards, wanted)
    _check_enough(url, models, needed)
    return models


def _read(address: str, cards: list[_Card], wanted: str) -> Models:
    # A base may have several names; vLLM lists the name in its answers first.
    base = next((card for card in cards if card.parent is None), None)
    if base is None:
        raise TargetUnfit(f"{address} lists no base model (one whose `parent` is null)")
    if not all(card.id.isprintable() for card in cards):
        raise TargetUnfit(f"{address} lists unprintable names: is this the right server?")
    adapters = [c for c in cards if c.parent is not None and fnmatchcase(c.id, wanted)]
    return Models(
        base=base.id,
        adapters=sorted({card.id for card in adapters}),
        is_lorry=base.owned_by == "lorry",
        stable={card.id: _stable(card) for card in adapters if card.version is not None},
    )


def _stable(card: _Card) -> int:
    return 0 if card.split else card.version or 0


def _check_enough(url: str, models: Models, needed: int) -> None:
    if (there := len(models.adapters)) < needed:
        raise TargetUnfit(
            f"{url} serves {there} adapters and the scenario needs {needed}: publish "
            f"{needed - there} more, choose a scenario with fewer, or let --serve start a server"
        )
