"""Stops the validation of a body at its first invalid elements.

pydantic collects every error of every list, key and branch of a union, and FastAPI copies them all:
a body of 12 KB (3,000 times `{}` as the input of /v1/responses) blocked the event loop for a minute
and took 5 GB.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic_core import PydanticCustomError, SchemaValidator

MAX_KEYS = 256  # of an object with named fields
_COLLECTIONS = frozenset({"list", "tuple", "set", "frozenset", "dict"})
_OBJECTS = frozenset({"typed-dict", "model"})
_NO_SCHEMAS = frozenset({"default", "metadata", "serialization"})


def stop_at_first_errors(app: FastAPI) -> None:
    """Give every route's body a validator that stops at a collection's first error."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for field in route.dependant.body_params:
                adapter = field._type_adapter  # as fastapi._compat.ModelField.validate uses it
                # A copy: other models may nest the model's own validator.
                adapter.validator = SchemaValidator(_bounded(adapter.core_schema), None, False)


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
