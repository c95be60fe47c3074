"""Callers that hang up: work for them ends then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

T = TypeVar("T")


class Disconnected(Exception):
    """The caller hung up before it could be answered, or stopped reading the answer."""


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the caller hangs up first.

    The request's body must have been received before.

    Raises:
        Disconnected: the caller hung up.
    """
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_wait_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _wait_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
