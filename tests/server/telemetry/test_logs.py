"""The log's two forms, and secrets, which are in neither."""

from __future__ import annotations

import io
import json
import logging

import pytest
from standin_server import TOKEN

from server.telemetry.logs import configure_logging

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


def test_one_place_in_the_code_fills_no_log_but_every_fault_is_in_it(stream, monkeypatch):
    configure_logging("json", stream)
    now = 100.0
    monkeypatch.setattr("server.telemetry.logs.time.monotonic", lambda: now)

    def repeat(times: int) -> None:
        for number in range(times):
            logging.getLogger("asyncio").error("out of descriptors %d: %s", number, "x" * number)
            logging.getLogger("lorry.middleware").error("failed", extra={"always": True})

    repeat(300)
    now += 61
    repeat(1)
    messages = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert messages.count("failed") == 301
    others = [each for each in messages if each != "failed"]
    assert len(others) == 21
    assert others[-1].endswith("(earlier messages suppressed: 280)")


@pytest.mark.parametrize(
    "character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", "\ud800", "é"]
)
async def test_a_callers_text_cannot_break_a_line(house, stream, character):
    configure_logging("json", stream)
    name = f"a{character}b"
    await house.client.post("/v1/completions", content=json.dumps({"model": name}))
    logging.getLogger("lorry.x").warning("no such %s", name)
    call, *_ = lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert stream.getvalue().isascii()
    assert json.loads(call)["outcome"] == "client_error"
    assert json.loads(lines[1])["message"] == f"no such {name}"


def test_other_libraries_speak_in_the_same_form(stream):
    configure_logging("json", stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("vllm.v1.engine").exception("it failed")
        logging.getLogger("some.library").error("too")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["logger"], first["level"]) == ("vllm.v1.engine", "error")
    assert first["exception"].endswith("ValueError: two\nlines")
    assert second["message"] == "too"
    # What it recommends at each start would download kernels that ours replace.
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("pip install kernels")
    logging.getLogger("vllm").warning("a word about tuning")
    assert len(stream.getvalue().splitlines()) == 2
