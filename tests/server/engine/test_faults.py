"""vLLM's app answers exceptions itself: they are kept for the call's log line."""

from __future__ import annotations

import io
import json
import logging
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from server.call import current_call
from server.telemetry.logs import configure_logging

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn


@pytest.fixture
def app(stream: io.StringIO) -> FastAPI:
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

    from server.engine.faults import keep_faults

    configure_logging("json", stream)
    app = FastAPI()
    app.state.args = SimpleNamespace(log_error_stack=False)
    init_exception_handler(app)
    app.middleware_stack = app.build_middleware_stack()  # as vLLM's build_app leaves it
    keep_faults(app)
    return app


@pytest.fixture
def call():
    call = SimpleNamespace(fault=None)
    token = current_call.set(call)
    yield call
    current_call.reset(token)


def test_what_vllms_handlers_answer_is_kept_with_its_cause(app, call):
    from vllm.v1.engine.exceptions import EngineGenerateError

    @app.get("/odd")
    async def odd() -> None:
        raise EngineGenerateError from OverflowError("10**30")

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("a bug")

    app.state.server = app.state.engine_client = SimpleNamespace(errored=False, is_running=True)
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/odd").status_code == 500
    assert isinstance(call.fault.__cause__, OverflowError)
    call.fault = None
    assert client.get("/bug").status_code == 500
    assert isinstance(call.fault, KeyError)


def test_vllms_tracebacks_within_a_call_are_kept_and_others_logged(app, stream, call):
    logger = logging.getLogger("vllm.entrypoints.anthropic.api_router")

    def fail() -> None:
        try:
            raise ValueError("a bad body")
        except ValueError as error:
            logger.exception("Error in create_messages: %s", error)

    fail()
    assert stream.getvalue() == ""
    assert isinstance(call.fault, ValueError)
    token = current_call.set(None)
    fail()
    current_call.reset(token)
    logger.error("without an exception")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == [
        "Error in create_messages: a bad body",
        "without an exception",
    ]
