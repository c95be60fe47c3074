"""/openapi.json: what FastAPI can't know, the paths of vLLM's app and the errors of every path."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from server.http.deadline import HEADER
from server.paths import INFERENCE_PATHS, OPEN_PATHS, is_admin

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "For people; it may change."},
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "description": "Stable, for programs."},
            },
        }
    },
}
_KEYS = {
    "ApiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (lorry keys create), where keys are in force; or the admin "
        "token, on the admin paths.",
    },
    "AnthropicKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_MORE = {
    429: "; try again after `Retry-After`",
    503: "; try again after `Retry-After`",
    504: f"; `{HEADER}` has passed",
}
_INFERENCE = (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 501, 503, 504)
_ADMIN = (400, 401, 403, 404, 408, 409, 413, 422, 502, 503, 507)
_MODELS = (400, 401, 403, 404, 503)
_KEYED = (401, 403, 503)  # any other path, where it needs a key
_DEADLINE = {
    "name": HEADER,
    "in": "header",
    "description": "Seconds from the request's head to the end of its answer; then it is a 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
}


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    """Add to FastAPI's schema, in place, and take its form of errors, which ours is not, away."""
    components = schema["components"]["schemas"]
    components["Error"] = _ERROR
    schema["components"]["securitySchemes"] = _KEYS
    schema["security"] = [{each: []} for each in _KEYS]
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    for path, operation in INFERENCE_PATHS.items():
        schema["paths"].setdefault(path, {})["post"] = {
            "summary": f"{operation} with the base or an adapter, by `model`",
            "parameters": [_DEADLINE],
            "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
            "responses": {"200": {"description": "As in OpenAI's or vLLM's API"}},
        }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= {str(status): _answer(status) for status in _errors(path)}
    return schema


def _errors(path: str) -> tuple[int, ...]:
    """The statuses of the errors that an operation of this path can end with."""
    if path in INFERENCE_PATHS:
        return _INFERENCE
    if path.startswith("/v1/models"):
        return _MODELS
    if is_admin(path):
        return _ADMIN
    return () if path in OPEN_PATHS else _KEYED


def _answer(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        "description": HTTPStatus(status).phrase + _MORE.get(status, ""),
        "content": {"application/json": {"schema": schema}},
    }
