"""Bodies as vLLM's request objects: validated off the event loop, to the first error, and bounded.

pydantic collects every error of every list, key and branch of a union, and FastAPI copies them all:
a body of 12 KB (3,000 times `{}` as the input of /v1/responses) blocked the event loop for a minute
and took 5 GB. A valid body of 10 MB takes seconds too. Here validation stops at the first error of
a collection, and a body of many objects is read in a thread, before FastAPI asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic_core import PydanticCustomError, SchemaValidator, ValidationError, from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import VLLMValidationError

from server.call import current_call
from server.disconnects import unless_disconnected
from server.errors import InvalidJson, RequestError
from server.turns import Turns

logger = logging.getLogger("lorry.validation")

MAX_KEYS = 256  # of an object with named fields
_COLLECTIONS = frozenset({"list", "tuple", "set", "frozenset", "dict"})
_OBJECTS = frozenset({"typed-dict", "model"})
_NO_SCHEMAS = frozenset({"default", "metadata", "serialization"})

_QUICK_OBJECTS = 256  # validated in 15 ms at most: on the event loop
_QUICK_BYTES = 256 * 1024

Check = Callable[[Any], None]


class BodyReader:
    """Takes the place of a route's own validator: returns what was read before, if it was.

    `check` raises a RequestError for a request that is valid and asks for too much.
    """

    def __init__(self, schema: Any, check: Check) -> None:
        self._validator = SchemaValidator(_bounded(schema), None, False)
        self._check = check

    def validate_python(self, value: Any, **options: Any) -> Any:
        """As pydantic.TypeAdapter calls it; raises ValidationError or VLLMValidationError."""
        call = current_call.get()
        read = call.engine_request if call is not None else None
        if isinstance(read, Exception):
            raise read
        try:
            request = self._validate(value, **options) if read is None else read
            self._check(request)
        except RequestError as error:
            if call is not None:
                call.refusal = error
            raise VLLMValidationError(str(error)) from None
        return request

    def read(self, body: bytes) -> Any:
        """The request in a JSON body, or why there is none; takes seconds for a large one.

        Raises InvalidJson: http/middleware.py reads no value but those that choose the adapter.
        """
        try:
            # msgspec takes 13 us, and Python's lock, for a number such as 1e300: seconds in all.
            value = from_json(body, cache_strings="keys")
        except ValueError as error:
            raise InvalidJson(f"The request body is not valid JSON: {error}.") from None
        try:
            return self._validate(value, from_attributes=True)
        except (ValidationError, VLLMValidationError) as error:
            return error

    def _validate(self, value: Any, **options: Any) -> Any:
        try:
            return self._validator.validate_python(value, **options)
        except (ValidationError, VLLMValidationError, RequestError):
            raise
        except Exception as error:  # noqa: BLE001 - some of vLLM's checks assume a field's type
            logger.warning("the checks of a request failed: %r", error)
            raise VLLMValidationError("A field of the request has a wrong type.") from None


class BodiesOffLoop:
    """vLLM's app, whose large bodies are validated in one thread, for one caller after the other.

    More threads would only share Python's lock, and the event loop with them.
    """

    def __init__(self, app: ASGIApp, readers: dict[str, BodyReader]) -> None:
        self._app = app
        self._readers = readers
        self._turns = Turns(1, code="bodies_busy")
        self._thread = ThreadPoolExecutor(1, "lorry-bodies")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: Message | None = await receive()  # the whole body: server/http/exchange.py
        body = first.get("body", b"") if first else b""
        reader = self._readers.get(scope.get("path", ""))
        call = current_call.get()
        if reader is not None and call is not None and not _is_quick(body):
            # Kept on the call, not in a context: that outlives the request on its connection.
            call.engine_request = await unless_disconnected(
                receive, self._read(reader, body, call.flow)
            )
            first = {"type": "http.request", "body": b"{}"}  # FastAPI need not parse it again

        async def replay() -> Message:
            nonlocal first
            message, first = first, None
            return await receive() if message is None else message

        await self._app(scope, replay, send)

    async def _read(self, reader: BodyReader, body: bytes, flow: str) -> Any:
        async with self._turns.take(flow):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, reader.read, body)


def _is_quick(body: bytes) -> bool:
    return len(body) <= _QUICK_BYTES and body.count(b"{") + body.count(b"[") <= _QUICK_OBJECTS


def read_bodies_off_loop(app: FastAPI, check: Check) -> BodiesOffLoop:
    """Give every route that takes a body a reader of ours."""
    readers: dict[str, BodyReader] = {}
    for route in app.routes:
        if isinstance(route, APIRoute):
            for field in route.dependant.body_params:
                adapter = field._type_adapter  # as fastapi._compat.ModelField.validate uses it
                # A copy: other models may nest the model's own validator.
                reader = BodyReader(adapter.core_schema, check)
                adapter.validator = reader  # type: ignore[assignment]
                readers[route.path] = reader
    return BodiesOffLoop(app, readers)


def _bounded(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(_bounded(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    changed = {
        key: value if key in _NO_SCHEMAS else _bounded(value) for key, value in schema.items()
    }
    kind = schema.get("type")
    if not isinstance(kind, str):
        return changed
    if kind in _COLLECTIONS:
        changed["fail_fast"] = True
    return _with_few_keys(changed) if kind in _OBJECTS else changed


def _with_few_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """Limit the keys, each of which could be an error of its own."""
    reference = {"ref": schema.pop("ref")} if "ref" in schema else {}
    function = {"type": "no-info", "function": _check_keys}
    return {"type": "function-before", "function": function, "schema": schema, **reference}


def _check_keys(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise PydanticCustomError("too_many_keys", f"More than {MAX_KEYS} keys in one object")
    return value
