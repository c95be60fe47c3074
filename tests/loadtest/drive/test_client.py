"""One call, against stand-in servers that answer well or badly."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from openai_standin import CUT, DONE, Manner, Standin, delta, event, piece, refusal, serve, usage
from planned import compose, make_call

from loadtest.drive import client
from loadtest.drive.client import Events, Target, ask, open_session
from loadtest.records import Record

A, B, END = piece("a"), piece("b"), piece("c", "stop")


@pytest.fixture
async def standin():
    async with serve() as server:
        yield server


async def make(url: str, timeout_seconds: float = 5.0, **fields: Any) -> Record:
    call = make_call(**fields)
    path, body, model = compose(call)
    target = Target(url=url, headers={"Authorization": "Bearer k"}, timeout_seconds=timeout_seconds)
    async with open_session() as session:
        return await ask(session, call, body, path, model, time.monotonic(), target)


async def reason_of(standin: Standin, manner: Manner, **fields: Any) -> str:
    standin.manner = manner
    record = await make(standin.url, **fields)
    assert (record.outcome == "failed") == bool(record.reason)
    return record.reason


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_good_answer(standin, endpoint, streamed):
    standin.manner.headers = {
        "x-lorry-adapter": "a@1",
        "x-lorry-adapter-digest": "sha256:d",
        "traceresponse": "00-0af7-b7ad-01",
    }
    record = await make(standin.url, endpoint=endpoint, streamed=streamed, adapter=3, number=5)
    assert (record.outcome, record.reason, record.status) == ("ok", "", 200)
    assert (record.model, record.answered, record.is_base) == ("adapter-3", "adapter-3", False)
    assert (record.served, record.digest, record.trace_id) == ("a@1", "sha256:d", "0af7")
    assert (record.prompt_tokens, record.output_tokens, record.text) == (7, 4, " t0 t1 t2 t3")
    assert (record.phase, record.stream, record.number) == ("steady", "mixed", 5)
    assert len(record.gaps) == (3 if streamed else 0)
    assert record.scheduled <= record.sent <= record.first <= record.last <= record.ended
    assert standin.headers[0]["Authorization"] == "Bearer k"


async def test_text_from_a_server_is_printable_and_bounded(standin):
    standin.manner.headers = {"x-lorry-adapter-digest": "d" * 999}
    standin.manner.frames = [piece(" t", "stop", model="\x1b]0;x\x07"), DONE]
    record = await make(standin.url, streamed=True)
    assert record.answered == "\ufffd]0;x\ufffd"
    assert len(record.digest) == 256


async def test_the_first_token_is_not_the_role(standin):
    frames = [delta(role="assistant", content=""), delta("stop", content="hi"), usage(1, 1), DONE]
    standin.manner = Manner(frames=frames, gap=0.1)
    record = await make(standin.url, endpoint="chat")
    assert record.first is not None
    assert record.first - record.sent > 0.09
    assert record.ended - record.last > 0.19  # nor is usage the last token
    assert record.gaps == []


async def test_several_tokens_in_a_piece_are_one_piece(standin):
    standin.manner = Manner(frames=[piece("a b c"), piece(" d e", "stop"), usage(1, 5), DONE])
    record = await make(standin.url)
    assert (record.output_tokens, len(record.gaps), record.text) == (5, 1, "a b c d e")


async def test_chunk_borders_and_line_ends_of_the_stream_do_not_matter(standin):
    whole = b"".join([piece("å"), piece("b", "stop"), usage(1, 2), DONE]).replace(b"\n", b"\r\n")
    thirds = [whole[:40], whole[40:81], whole[81:]]
    standin.manner = Manner(frames=thirds, gap=0.02)
    record = await make(standin.url)
    assert (record.outcome, record.text, record.output_tokens) == ("ok", "åb", 2)


async def test_an_answer_without_streaming_arrives_at_once(standin):
    standin.manner.seconds = 0.1
    record = await make(standin.url, streamed=False)
    assert record.first == record.last
    assert record.first - record.sent > 0.09


@pytest.mark.parametrize("frames", [[A, END, usage(1, 3)], [A, B, DONE]])
async def test_a_stream_may_end_with_done_or_with_a_finish_reason(standin, frames):
    assert await reason_of(standin, Manner(frames=frames)) == ""


@pytest.mark.parametrize(
    ("reason", "manner"),
    [
        ("http_503_adapters_busy", Manner(status=503, body=refusal("adapters_busy"))),
        ("http_500", Manner(status=500, body=b"oops")),
        ("http_400", Manner(status=400, body=refusal(400))),
        ("http_302", Manner(status=302, body=b"", headers={"Location": "/v1/completions"})),
        ("stream_broken", Manner(frames=[A, B])),
        ("stream_broken", Manner(frames=[A, CUT])),
        ("stream_broken", Manner(frames=[])),
        ("stream_error_engine_dead", Manner(frames=[A, event({"error": {"code": "Engine dead"}})])),
        ("stream_error", Manner(frames=[event({"error": "gone"})])),
        ("bad_answer", Manner(frames=[A, b"data: nonsense\n\n"])),
        ("bad_answer", Manner(frames=[usage(1, 0), DONE])),
        ("bad_answer", Manner(frames=[A, END, DONE], content_type="text/html")),
        ("bad_answer", Manner(body=b'{"choices": []}')),
    ],
)
async def test_the_reason_of_a_failed_stream(standin, reason, manner):
    assert await reason_of(standin, manner) == reason


@pytest.mark.parametrize(
    ("reason", "manner"),
    [
        ("http_503_adapters_busy", Manner(status=503, body=refusal("adapters_busy"))),
        ("bad_answer", Manner(body=b"<html>")),
        ("bad_answer", Manner(body=b'{"choices": []}')),
        ("bad_answer", Manner(body=b"{}")),
    ],
)
async def test_the_reason_of_a_failed_whole_answer(standin, reason, manner):
    assert await reason_of(standin, manner, streamed=False) == reason


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_server_that_hangs_is_a_timeout(standin, streamed):
    manner = Manner(hangs=True)
    assert await reason_of(standin, manner, streamed=streamed, timeout_seconds=0.1) == "timeout"


async def test_a_stalled_stream_is_a_timeout_and_its_pieces_are_kept(standin):
    standin.manner = Manner(frames=[A, B], gap=0.5)
    record = await make(standin.url, timeout_seconds=0.2)
    assert (record.reason, record.text, record.status) == ("timeout", "a", 200)


async def test_the_reason_without_a_server_is_connect():
    async with serve() as gone:
        pass
    record = await make(gone.url)
    assert (record.reason, record.status, record.first) == ("connect", 0, None)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "disconnected"),
        (b"220 smtp\r\n\r\n", "bad_answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "disconnected"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\n{", "http_503"),
    ],
)
async def test_a_server_that_aborts_a_whole_answer(sent, reason):
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(sent)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        record = await make(f"http://127.0.0.1:{port}", streamed=False)
    assert record.reason == reason


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_above_the_limit_is_a_bad_answer(standin, streamed, monkeypatch):
    monkeypatch.setattr(client, "MAX_ANSWER", 10_000)
    manner = Manner(frames=[piece("x" * 5000)] * 3) if streamed else Manner(body=b"x" * 10_001)
    assert await reason_of(standin, manner, streamed=streamed) == "bad_answer"


async def test_hanging_up_closes_the_connection(standin):
    standin.manner = Manner(frames=[A] * 500, gap=0.02)
    record = await make(standin.url, hang_up_after=3)
    assert (record.outcome, record.reason, record.output_tokens) == ("hung_up", "", 3)
    assert (record.text, len(record.gaps)) == ("aaa", 2)
    await asyncio.wait_for(standin.left.wait(), 2)
    assert record.ended - record.sent < 2


async def test_an_answer_that_ends_before_the_hang_up_is_ok(standin):
    record = await make(standin.url, output_tokens=2, hang_up_after=3)
    assert (record.outcome, record.output_tokens) == ("ok", 2)


async def test_connections_are_reused(standin, monkeypatch):
    ports = set()
    answer = standin._answer

    async def note(request: Any, *rest: Any) -> Any:
        ports.add(request.transport.get_extra_info("peername")[1])
        return await answer(request, *rest)

    monkeypatch.setattr(standin, "_answer", note)
    call, target = make_call(), Target(url=standin.url)
    path, body, model = compose(call)
    async with open_session() as session:
        for _ in range(3):
            await ask(session, call, body, path, model, time.monotonic(), target)
    assert len(ports) == 1


def test_the_repr_of_a_target_hides_its_secrets():
    assert "secret" not in repr(Target(url="http://x", headers={"Authorization": "secret"}))


STREAM = b': hello\r\n\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\ndata: [DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_chunk_borders(size):
    events = Events()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in events.feed(chunk)] == EVENTS


def test_an_incomplete_event_does_not_count():
    assert list(Events().feed(b"data: half")) == []
    assert list(Events().feed(b"data: no blank line after it\n")) == []
