"""What an answer of 500 hides is in the log, once; what a caller did wrong adds nothing to it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from standin_server import House, Stats, send_json

from server.call import Sequence, current_call
from server.http.faults import FaultMiddleware
from server.telemetry.logs import configure_logging


class PanicException(BaseException):
    """As pyo3's, which derives from BaseException."""


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def failing(error: BaseException) -> Any:
    async def answer(scope, receive, send):
        raise error

    return answer


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("odd"),
        PanicException("index out of bounds"),
        BaseExceptionGroup("streams", [PanicException("in a group")]),
    ],
)
async def test_a_call_that_fails_is_a_500_and_in_the_log_once(house: House, stream, error):
    configure_logging("json", stream)
    house.inner.answer = failing(error)
    response = await house.chat("red", headers={"x-request-id": "mine-7"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    fault, call = lines_of(stream)
    assert fault["message"] == f"/v1/chat/completions mine-7 failed: {type(error).__name__}"
    assert str(error) in fault["exception"]
    assert "Traceback" in fault["exception"]
    assert (call["request_id"], call["status"], call["outcome"]) == ("mine-7", 500, "error")
    house.inner.answer = None
    assert (await house.chat("red")).status_code == 200


async def test_a_500_that_vllm_answers_itself_is_in_the_log_with_its_cause(house: House, stream):
    configure_logging("json", stream)

    async def answer(scope, receive, send):
        call = current_call.get()
        try:
            raise RuntimeError("the grammar") from ValueError("10**30")
        except RuntimeError as error:  # as server/engine/faults.py keeps it
            call.fault = error
        await send_json(send, 500, {"error": {"message": "", "code": 500}})

    house.inner.answer = answer
    assert (await house.chat()).status_code == 500
    fault, _ = lines_of(stream)
    assert "ValueError: 10**30" in fault["exception"]
    assert "RuntimeError: the grammar" in fault["exception"]


async def test_a_500_without_an_exception_is_logged_with_its_message(house: House, stream):
    configure_logging("json", stream)

    async def answer(scope, receive, send):
        await send_json(send, 500, {"error": {"message": "Internal server error", "code": 500}})

    async def broken_stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        current_call.get().sequences.append(Sequence("x", prompt_tokens=1, stats=Stats()))
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        event = b'data: {"error": {"message": "it broke", "code": 500}}\n\n'
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    house.inner.answer = answer
    await house.chat()
    house.inner.answer = broken_stream
    assert (await house.chat()).status_code == 200
    first, call, second, streamed = lines_of(stream)
    assert first["message"].endswith("failed: Internal server error")
    assert second["message"].endswith("failed: it broke")
    assert [call["outcome"], streamed["outcome"]] == ["error", "error"]


@pytest.mark.parametrize(
    ("status", "engine_error"), [(400, None), (404, None), (501, None), (500, "EngineDeadError")]
)
async def test_what_the_caller_is_told_adds_no_traceback(
    house: House, stream, status, engine_error
):
    configure_logging("json", stream)

    async def answer(scope, receive, send):
        call = current_call.get()
        call.fault, call.engine_error = ValueError("a bad body"), engine_error
        await send_json(send, status, {"error": {"message": "a bad body", "code": status}})

    house.inner.answer = answer
    for _ in range(3):
        await house.chat()
    assert [each["event"] for each in lines_of(stream)] == ["call"] * 3


async def test_our_own_paths_answer_in_the_envelope_too(stream):
    configure_logging("json", stream)
    for error in (RuntimeError("odd"), PanicException("out of bounds")):
        scope = {"type": "http", "method": "GET", "path": "/v1/models"}
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await FaultMiddleware(failing(error))(scope, None, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 500
        assert json.loads(sent[1]["body"])["error"]["code"] == "internal_error"
    for line, name in zip(lines_of(stream), ("RuntimeError", "PanicException"), strict=True):
        assert line["message"] == "GET /v1/models failed"
        assert name in line["exception"]


@pytest.mark.parametrize("exit_", [KeyboardInterrupt(), SystemExit(3)])
async def test_exits_are_no_faults(exit_):
    with pytest.raises(type(exit_)):
        await FaultMiddleware(failing(exit_))({"type": "http"}, None, None)  # type: ignore[arg-type]
