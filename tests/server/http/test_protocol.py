"""One connection: its heads, its pipelined requests, and how long it may take."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re

import pytest
from sockets import GET, POST, Held, answer_at_once, served, settle, size_of_body
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.http import protocol
from server.http.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED

ENDLESS = {
    "url": (b"GET /", b"a" * 1000),
    "names": (b"GET / HTTP/1.1\r\n", b"a:b\r\n" * 200),
    "one header": (b"GET / HTTP/1.1\r\na: ", b"b" * 1000),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a:b\r\n" * 200),
}
TOO_LARGE = {
    "one header in one packet": GET[:-2] + b"a: %s\r\n\r\n" % (b"b" * 100_000),
    "a url in one packet": b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 100_000),
    "many headers": GET[:-2] + b"a: b\r\n" * MAX_HEADERS + b"\r\n",
    "half a header": GET[:-2] + b"a: %s" % (b"b" * 100_000),
}


# Heads


@pytest.mark.parametrize("part", ENDLESS)
async def test_a_head_without_end_is_cut_off(part):
    begin, more = ENDLESS[part]
    async with served(size_of_body) as server:
        caller = await server.connect(begin)
        answering = asyncio.create_task(caller.answer())
        sent = 0
        while not answering.done() and sent < 20 * MAX_HEAD_BYTES:
            caller.writer.write(more)
            await caller.writer.drain()
            sent += len(more)
            await asyncio.sleep(0)
        assert sent < 20 * MAX_HEAD_BYTES
        assert (await answering).code == "head_too_large"
        caller.writer.close()


@pytest.mark.parametrize("part", TOO_LARGE)
async def test_a_large_head_is_refused_in_the_envelope_however_it_arrives(part):
    async with served(size_of_body) as server:
        caller = await server.connect(TOO_LARGE[part])
        answer = await caller.answer()
        assert (answer.status, answer.code) == (431, "head_too_large")
        assert answer.headers["connection"] == "close"
        assert await caller.is_closed()


async def test_long_bodies_and_normal_heads_pass_on_one_connection():
    async with served(size_of_body) as server:
        caller = await server.connect()
        for size in (0, 10 * MAX_HEAD_BYTES, 3):
            head = b"X-Long: %s\r\nContent-Length: %d\r\n\r\n" % (b"a" * 30_000, size)
            caller.writer.write(POST + head + b"b" * size)
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b"%d" % size)
        caller.writer.close()


async def test_trailers_do_not_pass_for_headers():
    seen = []

    async def app(scope, receive, send):
        await size_of_body(scope, receive, send)
        seen.extend(name for name, _ in scope["headers"])

    async with served(app) as server:
        body = b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-late: 1\r\n\r\n"
        caller = await server.connect(POST + body)
        assert (await caller.answer()).body == b"1"
        caller.writer.close()
    assert seen == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize("length", [b"99999999999999999999999", b"9" * 5000])
async def test_a_length_beyond_64_bits_is_too_large(length):
    async with served(size_of_body) as server:
        caller = await server.connect(POST + b"Content-Length: %s\r\n\r\n" % length)
        answer = await caller.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"GET http:// HTTP/1.1\r\n\r\n", b"\x16"])
async def test_what_is_not_http_is_a_400_in_the_envelope(head, caplog):
    async with served(size_of_body) as server:
        for _ in range(3):
            caller = await server.connect(head)
            answer = await caller.answer()
            assert (answer.status, answer.code) == (400, "invalid_request")
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 1


async def test_an_upgrade_is_answered_as_the_request_that_it_is():
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with served(answer_at_once) as server:
        caller = await server.connect()
        for _ in range(2):
            caller.writer.write(upgrade)
            assert (await caller.answer()).status == 200
        caller.writer.close()


@pytest.mark.parametrize("pieces", [(b"hello",), (b"", b"hello"), (b"he", b"llo")])
async def test_the_body_of_an_upgrade_is_read_and_is_not_the_next_request(pieces):
    head = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n"
    async with served(size_of_body) as server:
        caller = await server.connect()
        for _ in range(2):
            caller.writer.write(head + pieces[0])
            for piece in pieces[1:]:
                await settle()
                caller.writer.write(piece)
            assert (await caller.answer()).body == b"5"
        caller.writer.write((head + b"hello") * 2)  # pipelined
        assert [(await caller.answer()).body for _ in range(2)] == [b"5", b"5"]
        caller.writer.close()


async def test_there_is_no_tunnel():
    async with served(size_of_body) as server:
        caller = await server.connect(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n" + GET)
        assert (await caller.answer()).status == 400
        assert await caller.is_closed()


async def test_pipelined_requests_are_answered_up_to_a_limit_then_the_connection_closes():
    async with served(answer_at_once) as server:
        caller = await server.connect(GET * 5000)
        answers = [await caller.answer() for _ in range(MAX_PIPELINED + 1)]
        assert {each.status for each in answers} == {200}
        assert answers[-1].headers["connection"] == "close"
        assert await caller.is_closed()
        assert server.server.server_state.total_requests <= MAX_PIPELINED + 1


@pytest.mark.parametrize("more", [b"", GET, GET + POST + b"Content-Length: 1\r\n\r\n"])
async def test_a_call_hears_that_its_caller_has_gone_whatever_was_pipelined(more):
    heard = asyncio.Event()

    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        heard.set()

    async with served(app) as server:
        caller = await server.connect(GET + more)
        await settle()
        caller.writer.transport.abort()
        await asyncio.wait_for(heard.wait(), 2)


async def test_nonsense_after_a_request_does_not_spoil_its_answer():
    app = Held()
    async with served(app) as server:
        caller = await server.connect(GET + b"nonsense\r\n\r\n")
        await settle()
        app.release.set()
        assert (await caller.answer()).body == b"ok"
        assert await caller.is_closed()


# Time


@pytest.mark.parametrize("data", [b"", b"\r\n"])
async def test_a_silent_connection_is_closed(data):
    async with served(size_of_body, head_seconds=0.1) as server:
        caller = await server.connect(data)
        assert await caller.reader.read() == b""


async def test_a_head_that_drips_is_a_408():
    async with served(size_of_body, head_seconds=0.2) as server:
        caller = await server.connect(POST)
        answering = asyncio.create_task(caller.answer())
        while not answering.done():
            caller.writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)
        answer = await answering
        assert (answer.status, answer.code) == (408, "request_too_slow")
        assert await caller.is_closed()


async def test_a_second_head_that_drips_is_a_408_too():
    async with served(size_of_body, head_seconds=0.1) as server:
        caller = await server.connect(GET)
        assert (await caller.answer()).status == 200
        caller.writer.write(b"GET / HT")
        assert (await caller.answer()).status == 408


async def test_a_head_may_drip_while_the_answer_before_it_is_in_progress():
    app = Held()
    async with served(app, head_seconds=0.1) as server:
        caller = await server.connect(GET + GET[:10])
        await asyncio.sleep(0.2)
        app.release.set()
        assert (await caller.answer()).status == 200
        caller.writer.write(GET[10:])
        assert (await caller.answer()).status == 200
        caller.writer.close()


async def test_an_idle_connection_is_kept_for_its_time_and_then_closed():
    async with served(size_of_body, keep_alive_seconds=0.3, head_seconds=0.05) as server:
        caller = await server.connect()
        for _ in range(2):
            caller.writer.write(GET)
            assert (await caller.answer()).status == 200
            assert not await caller.is_closed(within=0.15)
        assert await caller.is_closed()


async def test_the_rest_of_an_answered_request_is_not_awaited_for_ever(monkeypatch):
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.1)
    async with served(answer_at_once) as server:
        caller = await server.connect(POST + b"Content-Length: 10000000000\r\n\r\n")
        assert (await caller.answer()).status == 200
        try:
            for _ in range(100):
                caller.writer.write(b"x" * 1000)
                await caller.writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        assert await caller.is_closed(within=0)


async def test_a_rest_that_arrives_in_time_keeps_the_connection(monkeypatch):
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.1)
    async with served(answer_at_once) as server:
        caller = await server.connect(POST + b"Content-Length: 2\r\n\r\n")
        assert (await caller.answer()).status == 200
        caller.writer.write(b"xx")
        assert not await caller.is_closed(within=0.2)
        caller.writer.write(GET)
        assert (await caller.answer()).status == 200
        caller.writer.close()


async def test_a_caller_that_is_still_sending_sees_the_answer_before_the_close():
    async def refuse(scope, receive, send):
        await PlainTextResponse("no", 413, {"connection": "close"})(scope, receive, send)

    async with served(refuse) as server:
        caller = await server.connect(POST + b"Content-Length: 20000000\r\n\r\n")
        for _ in range(200):  # none of it is a reset
            caller.writer.write(b"x" * 100_000)
            await caller.writer.drain()
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await caller.reader.read() == b""


# uvicorn


def test_what_is_used_of_uvicorn_is_still_there():
    names = {
        HttpToolsProtocol: """connection_made connection_lost data_received eof_received on_url
            on_header on_headers_complete on_body on_message_begin on_message_complete
            on_response_complete pause_writing resume_writing timeout_keep_alive_handler
            _start_asgi_task _unset_keepalive_if_required""",
        RequestResponseCycle: "send receive run_asgi",
    }
    for kind, each in names.items():
        assert [name for name in each.split() if not hasattr(kind, name)] == []
    source = inspect.getsource(HttpToolsProtocol) + inspect.getsource(RequestResponseCycle)
    attributes = """parser flow cycle app url headers pipeline transport timeout_keep_alive_task
        response_complete response_started more_body keep_alive disconnected message_event"""
    set_there = set(re.findall(r"self\.(\w+)(?:: [^=]+)? = ", source))
    assert set(attributes.split()) <= set_there
