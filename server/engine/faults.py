"""Keeps the exceptions that vLLM's app answers itself, for the log line of the call.

vLLM turns an exception into an answer in two ways: its exception handlers log nothing of a 500, and
other places log a traceback even of a bad body. Both are kept on the call, and
server/http/middleware.py logs the cause of a 500 once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from fastapi import FastAPI

from server.call import current_call

Handler = Callable[..., Awaitable[Any]]


def keep_faults(app: FastAPI) -> None:
    """Keep each exception that vLLM answers or logs within a call."""
    for kind, handler in app.exception_handlers.items():
        app.exception_handlers[kind] = _keeping(handler)
    app.middleware_stack = None  # vLLM builds it early; the next request builds it with these
    for output in logging.getLogger().handlers:
        output.addFilter(_without_kept)


def _keeping(handler: Any) -> Handler:
    @wraps(handler)
    async def handle(request: Any, error: Exception) -> Any:
        _keep(error)
        return await handler(request, error)

    return handle


def _without_kept(record: logging.LogRecord) -> bool:
    """Passes a record unless it is vLLM's traceback of an exception in a call."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not record.name.startswith("vllm.") or not _keep(error)


def _keep(error: BaseException) -> bool:
    call = current_call.get()
    if call is None:
        return False
    call.fault = call.fault or error
    return True
