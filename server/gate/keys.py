"""Who calls, by the API key of a request, and whether that opens a path. Denies by default.

Keys are in force as soon as the catalog has, or had, one, or the settings require them. All keys
are in memory; they are read again when the catalog's mark changes, so that a call waits for a
database only after a change, and never for long.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers

from adapters.catalog.keys import Keys
from adapters.errors import AdapterError
from adapters.keys import Key, Keyring, Scope, digest_of
from server.errors import (
    AdminDisabled,
    InsufficientScope,
    InvalidApiKey,
    NotAuthorized,
    RequestError,
    Unavailable,
)
from server.paths import METRICS, MODELS, OPEN_PATHS, is_admin, scope_of

logger = logging.getLogger("lorry.keys")

Cut = Callable[[RequestError], None]

# Where Anthropic's clients send a key: as `x-api-key`.
_ANTHROPIC = ("/v1/messages", MODELS)
_MAX_SECRET_CHARACTERS = 4096
_LOOK_SECONDS = 0.2
_READ_SECONDS = 1.0  # longest wait of a call for a changed catalog; then the last state holds
_FIRST_SECONDS = 10.0  # where there is none yet
_HOW = "Send it as `Authorization: Bearer KEY`"
_HOW_TO_ENABLE = (
    "The admin API is off. Start the server with LORRY_ADMIN_TOKEN or --admin-token-file, and "
    "send the token as `Authorization: Bearer TOKEN`; or make a key: lorry keys create --name NAME "
    "--scope admin."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a key, the admin token, or anybody where keys are not in force."""

    actor: str  # for the catalog's history
    scopes: frozenset[Scope]
    key: Key | None = None
    digest: str = ""  # of the key's secret


ANYBODY = Caller("anybody", frozenset({"inference", "metrics"}))


class Authenticator:
    def __init__(
        self,
        keys: Keys,
        *,
        admin_token: str | None,
        requires_keys: bool,
        open_metrics: bool = False,
        is_readable: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_readable`: whether the catalog could be read a moment ago."""
        self._keys = keys
        self._token = hashlib.sha256(admin_token.encode()).digest() if admin_token else None
        self._is_shut = requires_keys
        self._open_metrics = open_metrics
        self._is_readable = is_readable
        self._ring: Keyring | None = None  # as it was last read
        self._reading: asyncio.Task[Keyring] | None = None
        self._read_since = 0.0
        self._running: dict[Cut, str] = {}  # the calls of keys, and the digests of their secrets

    @property
    def is_shut(self) -> bool:
        """Whether keys are in force."""
        return self._is_shut

    async def identify(self, headers: Headers, path: str) -> Caller:
        """Who may call this path.

        Raises:
            InvalidApiKey: no key, or none that is in force.
            InsufficientScope: a key that does not open this path.
            AdminDisabled, NotAuthorized: an admin path, where keys are not in force.
            Unavailable: the catalog can't be read, and the key is not known.
        """
        if path in OPEN_PATHS or (path == METRICS and self._open_metrics):
            return ANYBODY
        caller = await self._find(_read_secret(headers, path), path)
        scope = scope_of(path)
        if scope is not None and scope not in caller.scopes:
            raise InsufficientScope(
                f"This path needs the scope `{scope}`; {caller.actor} has "
                f"{', '.join(f'`{each}`' for each in sorted(caller.scopes))}."
            )
        return caller

    async def _find(self, secret: str, path: str) -> Caller:
        # Digests of equal length: the comparison reveals nothing about the token.
        given = hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
        ring = await self._current()
        if self._token is not None and hmac.compare_digest(given, self._token):
            also = frozenset[Scope]() if self._is_shut else ANYBODY.scopes
            return Caller(f"admin:{given.hex()[:8]}", also | {"admin"})
        if ring is None:
            raise _unreadable()
        if self._is_shut:
            return self._of_key(ring, secret)
        if not is_admin(path):
            return ANYBODY
        if self._token is None:
            raise AdminDisabled(_HOW_TO_ENABLE)
        raise NotAuthorized("Send the admin token as `Authorization: Bearer TOKEN`.")

    def _of_key(self, ring: Keyring, secret: str) -> Caller:
        if not secret:
            raise InvalidApiKey(f"This server needs an API key. {_HOW}.")
        digest = digest_of(secret)
        held = ring.secrets.get(digest)
        if held is None:
            if not self._is_readable():
                raise _unreadable()  # it may be a new one
            raise InvalidApiKey(f"The API key is not a valid one. {_HOW}.")
        if not ring.is_in_force(digest):
            raise _lapsed(held.key)
        return Caller(f"key:{held.key.name}", held.key.scopes, held.key, digest)

    async def _current(self) -> Keyring | None:
        """All keys now; those that were known, while the catalog can't be read."""
        ring = self._keys.remembered()
        if ring is not None:
            return self._note(ring)
        if self._reading is None:  # one for all calls that come meanwhile
            self._reading = asyncio.create_task(asyncio.to_thread(self._keys.ring))
            self._read_since = time.monotonic()
        reading = self._reading
        within = _FIRST_SECONDS if self._ring is None else _READ_SECONDS
        # From its beginning: of a read that hangs, only the first calls wait.
        left = max(self._read_since + within - time.monotonic(), 0.0)
        done, _ = await asyncio.wait({reading}, timeout=left)
        if not done:
            return self._ring
        if self._reading is reading:
            self._reading = None
        try:
            return self._note(reading.result())
        except AdapterError as error:
            logger.error("the keys can't be read; those known before are still good: %s", error)
            return self._ring

    def _note(self, ring: Keyring) -> Keyring:
        self._ring = ring
        # For good: a catalog without its keys, such as an old copy, must not open the server.
        self._is_shut = self._is_shut or bool(ring)
        return ring

    # ---- calls that run

    @contextmanager
    def following(self, caller: Caller, cut: Cut) -> Iterator[None]:
        """For the length of the block, `cut` ends the caller's call once its key has lapsed."""
        if not caller.digest:
            yield
            return
        self._running[cut] = caller.digest
        try:
            yield
        finally:
            del self._running[cut]

    async def run(self) -> None:
        """Read the keys after each change, and end the calls of those that lapsed, until
        cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # revoked streams must end at the next look
                logger.exception("the keys could not be looked at")
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        ring = await self._current()
        if ring is None:
            return
        for cut, digest in tuple(self._running.items()):
            if not ring.is_in_force(digest):
                held = ring.secrets.get(digest)
                cut(_lapsed(held.key if held else None))


def _read_secret(headers: Headers, path: str) -> str:
    """The secret that a request brings in its headers; "" if there is none, or not just one."""
    given = headers.getlist("authorization")
    if not given and path.startswith(_ANTHROPIC):
        secret = _only(headers.getlist("x-api-key"))
    else:
        scheme, _, rest = _only(given).partition(" ")
        secret = rest if scheme.lower() == "bearer" else ""
    secret = secret.strip()
    return secret if len(secret) <= _MAX_SECRET_CHARACTERS else ""


def _only(values: list[str]) -> str:
    return values[0] if len(values) == 1 else ""


def _lapsed(key: Key | None) -> InvalidApiKey:
    status = key.status() if key is not None else "unknown"
    # A secret of an active key is one that a rotation has replaced.
    words = {"active": "was replaced by another", "unknown": "is gone"}.get(status, f"is {status}")
    name = f" {key.name}" if key is not None else ""
    return InvalidApiKey(f"The API key{name} {words}. Ask the operator for another one.")


def _unreadable() -> Unavailable:
    return Unavailable(
        "The list of API keys can't be read.", code="catalog_unreadable", retry_after=5
    )
