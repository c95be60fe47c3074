"""The log's two forms, and secrets, which are in neither."""

from __future__ import annotations

import io
import json
import logging

import pytest
from standin_server import TOKEN

from server.telemetry.logs import OncePerMinute, configure_logging

SECRET = "sk-the-secret-of-a-caller"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("form", "stream_type", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
async def test_the_form_follows_the_terminal_or_the_setting(
    house, stream, form, stream_type, is_json
):
    out = stream_type()
    configure_logging(form, out)
    await house.chat("red")
    await house.chat("nobody")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    if is_json:
        assert [json.loads(line)["outcome"] for line in lines] == ["ok", "client_error"]
    else:
        assert "red@1 /v1/chat/completions 200 ok  5+3 tokens" in lines[0]
        assert house.log[0]["trace_id"] in lines[0]
        assert "_unresolved /v1/chat/completions 404 client_error  model_not_found" in lines[1]


def test_a_callers_text_cannot_move_a_terminals_cursor(stream):
    configure_logging("text", stream)
    logging.getLogger("lorry.x").warning("%s", "a\nb\x1b[2Jc")
    assert stream.getvalue().endswith("warning: a b [2Jc\n")


async def test_secrets_are_in_no_log_span_or_metric(house, stream):
    configure_logging("json", stream)
    headers = {"authorization": f"Bearer {SECRET}", "x-api-key": SECRET, "cookie": SECRET}

    async def fail(scope, receive, send):
        raise RuntimeError("odd")

    await house.chat("red", headers=headers)
    await house.chat("nobody", headers=headers)
    house.inner.answer = fail
    await house.chat("red", headers=headers)
    for path in ("/admin/adapters", f"/v1/models?key={SECRET}"):
        await house.client.get(path, headers=headers)
    await house.client.get("/admin/adapters", headers={"authorization": f"Bearer {TOKEN}"})
    house.tracing.provider.force_flush()
    spans = "".join(span.to_json() for span in house.spans.get_finished_spans())
    metrics = (await house.client.get("/metrics")).text
    for output in (stream.getvalue(), spans, metrics):
        assert output
        assert SECRET not in output
        assert TOKEN not in output


def test_an_unreachable_collector_is_logged_once_a_minute(stream, monkeypatch):
    configure_logging("json", stream)
    logger = logging.getLogger("opentelemetry.exporter.otlp")
    now = 100.0
    monkeypatch.setattr("server.telemetry.logs.time.monotonic", lambda: now)
    for _ in range(5):
        logger.warning("Transient error %s", "UNAVAILABLE")
    now += 61
    logger.error("Failed to export")
    first, second = (json.loads(line)["message"] for line in stream.getvalue().splitlines())
    assert first == "Transient error UNAVAILABLE"
    assert second == "Failed to export (earlier messages suppressed: 4)"
    assert OncePerMinute().filter(logging.makeLogRecord({"msg": "x"}))
