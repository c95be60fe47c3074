"""One inference call from start to end: read, admit, resolve, lease, answer, record.

Pure ASGI, outside vLLM's app. However a call ends, the one `finally` here records it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.call import Call, current_call
from server.disconnects import Disconnected
from server.errors import EXITS, InvalidJson, InvalidRequest, MethodNotAllowed, RequestError
from server.gate.keys import Authenticator
from server.gate.quotas import Quotas
from server.http.bodies import Bodies
from server.http.deadline import Deadline
from server.http.exchange import Exchange, end_stream, send_error
from server.http.key_guard import caller_of
from server.http.shape import Shape
from server.lifecycle import Lifecycle, Phase, refusal
from server.naming import ModelNames
from server.paths import INFERENCE_PATHS
from server.suspects import Suspects
from server.telemetry.recorder import Recorder

logger = logging.getLogger("lorry.middleware")

# Headers with which a caller could choose vLLM's adapter, priority, replica or session itself, and
# those that we set: the trace parent (our span) and the request id (a unique one). By `origin` vLLM
# would allow every browser's page; http/cors.py decides.
STRIPPED_HEADERS = frozenset(
    {
        b"origin",
        b"x-amzn-sagemaker-adapter-identifier",
        b"x-amzn-sagemaker-adapter-alias",
        b"x-vllm-priority",
        b"x-data-parallel-rank",
        b"x-session-id",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
    }
)

_TOKENS_ONLY = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
_MAX_NAME_CHARACTERS = 512
_QUICK_BYTES = 256 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Selection(msgspec.Struct):
    """The fields of a body that choose the adapter; vLLM reads all the others."""

    model: str | None = None
    stream: bool | None = None
    user: msgspec.Raw = msgspec.Raw()  # anything; decoding numbers such as 1e300 takes long
    # Refused: vLLM would run these outside the call (after its lease, under an id of the caller's
    # choice, or as one engine request for each beam and token).
    background: bool | None = None
    request_id: str | None = None
    use_beam_search: bool | None = None


_NOT_SUPPORTED = ("background", "request_id", "use_beam_search")


class InternalError(RequestError):
    """A bug: the log has its traceback, the caller gets none of it."""


class InferenceMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        names: ModelNames,
        recorder: Recorder,
        bodies: Bodies,
        shape: Shape,
        suspects: Suspects,
        quotas: Quotas,
        authenticator: Authenticator,
    ) -> None:
        self._app = app
        self._quotas = quotas
        self._lifecycle = lifecycle
        self._names = names
        self._recorder = recorder
        self._bodies = bodies
        self._shape = shape
        self._suspects = suspects
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in INFERENCE_PATHS:
            await self._app(scope, receive, send)
            return
        call = self._start(scope)
        token = current_call.set(call)
        try:
            await self._answer(call, scope, receive, send)
        finally:
            current_call.reset(token)
            log_fault(call)
            self._recorder.end(call)
            self._quotas.settle(call)

    def _start(self, scope: Scope) -> Call:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        return self._recorder.start(
            request_id=given if _REQUEST_ID.fullmatch(given) else "",
            endpoint=scope["path"],
            operation=INFERENCE_PATHS[scope["path"]],
            headers=headers,
            caller=(scope.get("client") or ("",))[0],
        )

    async def _answer(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = caller_of(scope)
            call.key = caller.key
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{call.endpoint} takes POST only.")
            self._lifecycle.check_ready()
            deadline = Deadline(Headers(scope=scope), receive)
            with self._authenticator.following(caller, deadline.cut), deadline.until(call):
                await self._read_and_serve(call, scope, deadline.receive, send)
        except RequestError as error:
            await self._refuse(call, send, error)
        except Disconnected:
            call.disconnected = True
        except asyncio.CancelledError:  # by the server, at the end of its drain
            if call.status:
                call.disconnected = True
                raise
            await send_error(send, call, refusal(Phase.DRAINING))
        except EXITS:
            raise
        except BaseException as error:  # noqa: BLE001
            if call.refusal is not None and not call.status:
                await send_error(send, call, call.refusal)
            else:
                await self._fail(call, send, error)

    async def _read_and_serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        # Before the call counts as in flight: a body that never comes must not delay a drain.
        body = await self._bodies.read(Headers(scope=scope), receive)
        self._shape.check(body)
        with self._lifecycle.admit():
            await self._serve(call, body, scope, receive, send)

    async def _serve(
        self, call: Call, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        selection = select(body)
        # Longer than any valid name; log lines and spans stay short.
        call.requested_model = (selection.model or "")[:_MAX_NAME_CHARACTERS]
        call.stream = bool(selection.stream)
        call.user = user_of(selection)
        side = split_key(call, scope)
        call.version = await self._names.resolve(selection.model or "", side, call.key)
        call.requested_model = selection.model  # whole: a valid sum may be longer
        call.resolved = True
        await self._quotas.arrive(call)
        call.digest = await digest_of(body)
        self._suspects.check(call.digest)
        exchange = Exchange(call, body, receive, send)
        engine = self._lifecycle.engine()
        if call.version is not None:
            engine.residency.check(call.version)
        if call.endpoint not in _TOKENS_ONLY:
            engine.admission.check_room(call)
        self._recorder.begin(call, body)
        await engine.app(_inner_scope(scope, call), exchange.receive, exchange.send)

    async def _refuse(self, call: Call, send: Send, error: RequestError) -> None:
        """Answer with the error; in a stream that has begun, as its last event."""
        if not call.status:
            await send_error(send, call, error)
        elif not call.response_complete:
            try:
                await end_stream(send, call, error)
            except Disconnected:
                call.disconnected = True

    async def _fail(self, call: Call, send: Send, error: BaseException) -> None:
        """Answer with a clean 500; `log_fault` has the cause."""
        call.fault = call.fault or error
        if call.response_complete:
            return  # vLLM's app answers an exception, then raises it again for its server's log
        call.engine_error = type(error).__name__
        if not call.status:
            await send_error(send, call, InternalError("The server failed to answer this call."))


def log_fault(call: Call) -> None:
    """Log what the answer hides, once: not what the caller was told, or the engine's death."""
    status = call.late_status or call.status
    is_told = 400 <= status < 500 or status in (501, 503) or call.error_code == "engine_dead"
    if call.fault is None or is_told:
        return
    if isinstance(call.fault, str):
        words, error = call.fault, None
    else:
        words, error = type(call.fault).__name__, call.fault
    where = (call.endpoint, call.request_id)
    logger.error("%s %s failed: %s", *where, words, exc_info=error, extra={"always": True})


async def digest_of(body: bytes) -> str:
    """SHA-256 as hexadecimal digits; in a thread if it takes long."""
    if len(body) < _QUICK_BYTES:
        return hashlib.sha256(body).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()


def select(body: bytes) -> Selection:
    """Read only the fields that choose the adapter from a JSON body.

    Raises:
        InvalidRequest: not a JSON object, a wrong type, no model, or an unsupported field.
    """
    try:
        selection = msgspec.json.decode(body, type=Selection)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The request body is not valid: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid_json(error) from None
    if not selection.model:
        raise InvalidRequest(
            "The request must name a `model`: the base or an adapter (GET /v1/models lists them).",
            code="missing_model",
            param="model",
        )
    for name in _NOT_SUPPORTED:
        if getattr(selection, name):
            raise InvalidRequest(
                f"`{name}` is not supported here; leave it out.", code="unsupported", param=name
            )
    return selection


def user_of(selection: Selection) -> str:
    """The `user` field, if it is a text. Raises InvalidJson: it is none that JSON knows."""
    user = bytes(selection.user)
    if not user.startswith(b'"'):
        return ""
    try:
        return msgspec.json.decode(user, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid_json(error) from None


def split_key(call: Call, scope: Scope) -> str:
    """Key for traffic splitting: the `user` field, else the session id, else the request id."""
    return call.user or Headers(scope=scope).get("x-session-id") or call.request_id


def _invalid_json(error: Exception) -> InvalidJson:
    return InvalidJson(f"The request body is not valid JSON: {error}.")


def _inner_scope(scope: Scope, call: Call) -> Scope:
    """The scope for vLLM's app, with our request id and without STRIPPED_HEADERS."""
    headers: list[tuple[bytes, Any]] = [
        (name, value) for name, value in scope["headers"] if name.lower() not in STRIPPED_HEADERS
    ]
    headers.append((b"x-request-id", call.engine_id.encode()))
    return {**scope, "headers": headers}
