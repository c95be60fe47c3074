"""One GET to the server under test, bounded in time and size."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from loadtest.errors import TargetUnfit

MAX_BYTES = 64 * 1024 * 1024
SECONDS = 30.0


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    *,
    max_bytes: int = MAX_BYTES,
    seconds: float = SECONDS,
) -> bytes:
    """The body of an answer with status 200.

    Raises:
        TargetUnfit: there is no answer in time, another status, or a body above `max_bytes`.
    """
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with session.get(
            url, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            _check_status(url, response.status)
            return await read_body(response, max_bytes)
    except TimeoutError:
        raise TargetUnfit(f"{url} did not answer within {seconds:g} s: is it ready?") from None
    except (aiohttp.ClientError, ValueError) as error:
        message = str(error) or type(error).__name__
        raise TargetUnfit(f"{url} can't be reached ({message}): check the address") from None


def _check_status(url: str, status: int) -> None:
    if status in (401, 403):
        raise TargetUnfit(f"{url} answered {status}: give the key that the server requires")
    if status != 200:
        raise TargetUnfit(f"{url} answered {status} and not 200: check the address")


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The whole body; raises TargetUnfit above `max_bytes`."""
    body = await read_bounded(response, max_bytes)
    if body is None:
        raise TargetUnfit(f"{response.url} answered more than {max_bytes} bytes: check the address")
    return body


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """The whole body; None above `max_bytes`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)
