"""One call through the gateway: to a replica, and to another one if nothing was sent yet.

An answer begins for the caller with its first piece. Until then a replica that dies, drains or
starts costs a call only time: generating twice has no other effect. After that an error event
reports that the answer is cut.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import msgspec
from multidict import CIMultiDict
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from yarl import URL

from cluster.gateway.metrics import GatewayMetrics
from cluster.gateway.picking import NoReplica, Picker, Target
from server.disconnects import Disconnected
from server.errors import BadAnswer, Unavailable
from server.telemetry.logs import RateLimit

logger = logging.getLogger("lorry.gateway.calls")
logger.filters[:] = [RateLimit(lines=10, by_place=False)]  # an outage concerns every call

_MOST_LOSSES = 3  # of servers with one call; then it is the call that is refused
_ROUND_SECONDS = 0.2  # between two rounds over all replicas
_WHOLE_BYTES = 1 << 20  # answers up to this length are complete before the caller gets a byte
_ELSEWHERE = frozenset({"starting", "draining", "engine_dead"})  # codes of a 503
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Ours to set: nobody but the gateway says where a call comes from.
_SET_HERE = frozenset({b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_MAX_ID_CHARACTERS = 128
_UNNAMED_EVENTS = frozenset({"/v1/chat/completions", "/v1/completions"})


class _Model(msgspec.Struct):
    model: str | None = None


def model_of(body: bytes) -> str | None:
    """The `model` of a call; None where a replica will refuse the body."""
    try:
        return msgspec.json.decode(body, type=_Model).model
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


@dataclass(slots=True)
class Call:
    """`body` is None where `receive` passes it on as it arrives: such a call is sent once."""

    scope: Scope
    send: Send
    model: str | None
    body: bytes | None
    receive: Receive | None = None
    request_id: str = ""
    has_begun: bool = False  # the caller has got a part of the answer
    is_gone: bool = False  # the caller hung up while it sent the body

    @classmethod
    def of(
        cls, scope: Scope, send: Send, body: bytes | None, receive: Receive | None = None
    ) -> Call:
        """`body` None: it arrives by `receive`."""
        given = Headers(scope=scope).get("x-request-id", "")[:_MAX_ID_CHARACTERS]
        model = model_of(body) if body is not None else None
        return cls(scope, send, model, body, receive, given or uuid.uuid4().hex)

    def headers(self) -> CIMultiDict[str]:
        """Those for the replica."""
        found: CIMultiDict[str] = CIMultiDict()
        listed = Headers(scope=self.scope).getlist("connection")
        of_this_hop = {
            each.strip().lower().encode("latin-1") for each in ",".join(listed).split(",")
        }
        for name, value in self.scope["headers"]:
            if name not in _HOP_BY_HOP and name not in _SET_HERE and name not in of_this_hop:
                found.add(name.decode("latin-1"), value.decode("latin-1"))
        found.setdefault("x-request-id", self.request_id)
        if client := self.scope.get("client"):
            found["x-forwarded-for"] = client[0]
        return found

    def url(self, target: Target) -> URL:
        path = (self.scope.get("raw_path") or self.scope["path"].encode()).decode("latin-1")
        query = self.scope["query_string"].decode("latin-1")
        return URL(f"{target.url}{path}{'?' if query else ''}{query}", encoded=True)


class _Unanswered(Exception):
    """This replica can't answer the call, of whose answer the caller has got nothing.

    `was_lost`: it had the call when it was lost, so the call may be the reason.
    """

    def __init__(self, words: str, *, was_lost: bool = False) -> None:
        super().__init__(words)
        self.was_lost = was_lost


class Cut(Exception):
    """The replica was lost in the middle of an answer, which stays incomplete."""


class Calls:
    def __init__(
        self,
        picker: Picker,
        session: aiohttp.ClientSession,
        metrics: GatewayMetrics,
        wait_seconds: float,
    ) -> None:
        self._picker = picker
        self._session = session
        self._metrics = metrics
        self._wait_seconds = wait_seconds

    async def answer(self, call: Call) -> None:
        """Answer by one replica after the other.

        Raises:
            Unavailable: none could, for `wait_seconds` (`no_replica`), or the only try of a call
                that must not be repeated failed (`replica_lost`).
            Disconnected: the caller hung up.
            Cut: the answer has begun, and can't be ended.
        """
        tried: set[str] = set()
        losses = 0
        deadline = time.monotonic() + self._wait_seconds
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                async with self._picker.pick(call.model, tried, left) as target:
                    await self._ask(call, target)
                return
            except NoReplica:
                raise self._refusal() from None
            except _Unanswered as failure:
                was_lost = failure.was_lost
                losses += was_lost
                self._check_repeatable(call, target, losses)
                self._picker.suspect(target.name)
                self._metrics.retries.inc()
                logger.warning("%s is retried on another server: %s", call.request_id, failure)
            if left <= 0 and not was_lost:
                raise self._refusal()
            if target.name in tried:
                await asyncio.sleep(_ROUND_SECONDS)
            tried.add(target.name)

    def _check_repeatable(self, call: Call, target: Target, losses: int) -> None:
        """Raises Unavailable for a change, and for a call that servers were lost with."""
        if call.body is None:
            raise Unavailable(
                f"The server {target.name} was lost before it answered. Look whether the change "
                "is there before you make it again.",
                code="replica_lost",
                retry_after=1,
            ) from None
        if losses >= _MOST_LOSSES:
            raise Unavailable(
                f"{losses} servers were lost while they worked on this call. Send it again only "
                "if others are answered.",
                code="replica_lost",
                retry_after=60,
            ) from None

    def _refusal(self) -> Unavailable:
        self._metrics.refusals.inc()
        return Unavailable(
            "No server of the cluster takes calls now. Try again later.",
            code="no_replica",
            retry_after=5,
        )

    async def _ask(self, call: Call, target: Target) -> None:
        """Raises _Unanswered if the replica has failed and the caller has got nothing."""
        try:
            async with self._session.request(
                call.scope["method"],
                call.url(target),
                data=call.body if call.body is not None else _pass_body(call),
                headers=call.headers(),
                allow_redirects=False,
                skip_auto_headers=_AUTOMATIC,
            ) as answer:
                first = await _first_piece(answer)
                await self._relay(call, answer, first)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _Unanswered(f"{target.name}: {error!r}") from None
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            if call.has_begun:
                raise Cut from None
            logger.error("%s: %s answers what can't be read: %r", call.request_id, target, error)
            raise BadAnswer("A server's answer can't be passed on.") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            if call.is_gone:
                raise Disconnected from None
            if not call.has_begun:
                raise _Unanswered(f"{target.name}: {error!r}", was_lost=True) from None
            self._metrics.cuts.inc()
            logger.error("%s was cut: %s was lost: %r", call.request_id, target.name, error)
            await _end_cut(call, answer)

    async def _relay(self, call: Call, answer: aiohttp.ClientResponse, first: bytes) -> None:
        headers = [
            (name.lower(), value)
            for name, value in answer.raw_headers
            if name.lower() not in _HOP_BY_HOP
        ]
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        call.has_begun = True
        call.body = None  # it is not sent again
        await call.send(start)
        piece = first
        while piece:
            await call.send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await answer.content.readany()
        await call.send({"type": "http.response.body", "body": b""})


async def _first_piece(answer: aiohttp.ClientResponse) -> bytes:
    """The first bytes of the answer; all of a short one.

    Raises:
        _Unanswered: it says that another replica should be asked.
        aiohttp.ClientError: the replica is lost.
    """
    length = answer.content_length
    if length is None or length > _WHOLE_BYTES:
        return await answer.content.readany()
    body = await answer.read()
    if answer.status == 503 and (code := _code_of(body)) in _ELSEWHERE:
        raise _Unanswered(f"503 {code}")
    return body


def _code_of(body: bytes) -> str | None:
    try:
        return str(msgspec.json.decode(body)["error"]["code"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return None


async def _pass_body(call: Call) -> AsyncIterator[bytes]:
    assert call.receive is not None
    while True:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            call.is_gone = True
            raise Disconnected
        if part := message.get("body", b""):
            yield part
        if not message.get("more_body", False):
            return


async def _end_cut(call: Call, answer: aiohttp.ClientResponse) -> None:
    """Tell the caller of a stream; any other answer stays incomplete, which its framing shows."""
    if answer.content_type != "text/event-stream":
        raise Cut
    error = Unavailable("The replica was lost in the middle of this answer.", code="replica_lost")
    if call.scope["path"] in _UNNAMED_EVENTS:
        event = f"\n\ndata: {json.dumps(error.envelope())}\n\ndata: [DONE]\n\n"
    else:
        event = f"\n\nevent: error\ndata: {json.dumps({'type': 'error'} | error.envelope())}\n\n"
    await call.send({"type": "http.response.body", "body": event.encode()})
