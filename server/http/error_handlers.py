"""Exceptions of our own routes as HTTP: always OpenAI's envelope, never a traceback."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from adapters.errors import (
    AdapterError,
    CatalogError,
    CheckpointInvalid,
    StoreError,
    StoreFull,
    TemplateNotRun,
)
from server.errors import (
    InvalidRequest,
    MethodNotAllowed,
    RequestError,
    RequestTooLarge,
    RequestTooSlow,
    UnknownPath,
    envelope,
)
from server.http.unknown_paths import describe
from server.paths import is_admin

logger = logging.getLogger("lorry.http")

_NOT_NOW = "The catalog or the store can't be used now. Try again later."
_MAX_PROBLEMS = 100
# Any other code is a 400, or a 503 (507 when it is full) for an error of store or catalog.
_STATUS_BY_CODE = {
    "adapter_not_found": 404,
    "key_not_found": 404,
    "key_exists": 409,
    "key_revoked": 409,
    "alias_not_found": 404,
    "limit_not_found": 404,
    "alias_is_split": 409,
    "gate_refused": 409,
    "version_in_use": 409,
    "other_base": 409,
    "nothing_to_roll_back": 409,
    "source_not_found": 404,
    "source_unreachable": 502,
    "checkpoint_invalid": 422,
}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(AdapterError, _answer_adapter_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http_error)


async def _answer_request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return _as_response(error)


async def _answer_adapter_error(request: Request, error: Exception) -> JSONResponse:
    """For a refused adapter the envelope has the first problem, and `problems` has them all."""
    assert isinstance(error, AdapterError)
    if isinstance(error, StoreError | CatalogError) and not is_admin(request.url.path):
        logger.error("%.128s: %s", request.url.path, error)  # it names files and hosts
        body = envelope(_NOT_NOW, "server_error", error.code, None)
        return JSONResponse(body, 503, {"retry-after": "5"})
    if isinstance(error, StoreFull):
        return JSONResponse(envelope(str(error), "server_error", error.code, None), 507)
    if isinstance(error, StoreError | CatalogError | TemplateNotRun):
        body = envelope(str(error), "server_error", error.code, None)
        return JSONResponse(body, 503, {"retry-after": "5"})
    body = envelope(str(error), "invalid_request_error", error.code, None)
    if isinstance(error, CheckpointInvalid):
        body["error"]["code"] = error.problems[0].code
        body["problems"] = [
            {"code": p.code, "where": p.where, "message": p.message, "fix": p.fix}
            for p in error.problems[:_MAX_PROBLEMS]
        ]
    return JSONResponse(body, _STATUS_BY_CODE.get(error.code, 400))


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    problems: list[Any] = list(error.errors())
    places = [".".join(map(str, problem["loc"])) or "body" for problem in problems]
    text = "; ".join(
        f"{place[:128]}: {p['msg']}" for place, p in zip(places, problems, strict=True)
    )
    is_parsed = isinstance(error, RequestValidationError)  # by FastAPI, which needs the header
    if is_parsed and "json" not in request.headers.get("content-type", "") and "body" in places:
        text += "; a JSON body needs the header `Content-Type: application/json`"
    return _as_response(InvalidRequest(f"The request is not valid: {text}."[:2000]))


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path[:128]
    if error.status_code == 405:
        answer = _as_response(MethodNotAllowed(f"{path} does not take this method."))
        answer.headers["allow"] = ", ".join(sorted(_methods(request)))
        return answer
    if error.status_code == 404:
        return _as_response(UnknownPath(describe(request.url.path)))
    if error.status_code == 408:
        return _as_response(RequestTooSlow(str(error.detail)))
    if error.status_code == 413:
        return _as_response(RequestTooLarge(str(error.detail)))
    body = envelope(str(error.detail), "invalid_request_error", "invalid_request", None)
    return JSONResponse(body, error.status_code)


def _methods(request: Request) -> set[str]:
    """All methods of the path; the exception has those of one of its routes only."""
    routes = [each for each in request.app.routes if isinstance(each, Route)]
    matching = (each for each in routes if each.matches(request.scope)[0] is not Match.NONE)
    methods = {method for each in matching for method in each.methods or ()}
    return methods | {"HEAD"} if "GET" in methods else methods


def _as_response(error: RequestError) -> JSONResponse:
    return JSONResponse(error.envelope(), error.status, error.headers())
