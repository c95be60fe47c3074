"""Callers can't exhaust the server by connections, heads, rests of bodies or unread answers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import resource
import socket

import pytest
from sockets import Caller, served
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.http import connections, protocol
from server.http.connections import SPARE_CONNECTIONS
from server.http.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
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


async def size_of_body(scope, receive, send):
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await PlainTextResponse(str(size))(scope, receive, send)


async def answer_at_once(scope, receive, send):
    await PlainTextResponse(scope["path"])(scope, receive, send)


class Held:
    """An app whose answers wait for `release`; probes are answered."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.begun = 0

    async def __call__(self, scope, receive, send):
        if scope["path"] != "/livez":
            self.begun += 1
            await self.release.wait()
        await PlainTextResponse("ok")(scope, receive, send)


async def settle() -> None:
    """Let the server take what has been sent on the loopback device."""
    for _ in range(20):
        await asyncio.sleep(0.005)


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


# Number


async def test_silent_connections_do_not_keep_others_out():
    async with served(size_of_body, connections=20) as server:
        silent = [await server.connect() for _ in range(200)]
        assert (await server.get("/")).status == 200
        await settle()
        assert server.open <= 20 + SPARE_CONNECTIONS
        assert await silent[0].is_closed()  # the oldest
        assert not await silent[-1].is_closed(within=0)


async def test_connections_that_wait_for_their_next_request_make_room_too():
    async with served(size_of_body, connections=20) as server:
        kept = [await server.connect(GET) for _ in range(100)]
        answers = [await each.answer() for each in kept]
        assert {each.status for each in answers} == {200}
        assert await kept[0].is_closed()
        assert not await kept[-1].is_closed(within=0)


async def test_calls_at_the_limit_are_503_and_probes_are_answered(caplog):
    app = Held()
    async with served(app, connections=20) as server:
        calls = [await server.connect(GET) for _ in range(20)]
        await settle()
        assert app.begun == 20
        refused = [await server.get("/v1/models") for _ in range(5)]
        assert {(each.status, each.code) for each in refused} == {(503, "too_many_connections")}
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].headers["connection"] == "close"
        assert (await server.get("/livez")).status == 200
        silent = [await server.connect() for _ in range(200)]
        assert (await server.get("/livez")).status == 200
        app.release.set()
        assert {(await each.answer()).status for each in calls} == {200}
        assert (await server.get("/v1/models")).status == 200
        assert silent
    assert len(caplog.records) == 1


async def test_unfinished_bodies_do_not_keep_others_out(monkeypatch):
    unfinished = POST + b"Content-Length: 5\r\n\r\nx"
    async with served(size_of_body, connections=20) as server:
        uploads = [await server.connect(unfinished) for _ in range(20)]
        await settle()
        assert (await server.get("/")).code == "too_many_connections"
        monkeypatch.setattr(connections, "_UPLOAD_SECONDS", 0)
        assert (await server.get("/")).status == 200
        assert await uploads[0].is_closed()
        uploads[-1].writer.write(b"xxxx")
        assert (await uploads[-1].answer()).body == b"5"


async def test_nothing_is_kept_of_connections_that_have_gone():
    async with served(size_of_body, connections=20) as server:
        for data in (b"", GET, GET[:9], GET + GET, POST + b"Content-Length: 5\r\n\r\nx"):
            callers: list[Caller] = [await server.connect(data) for _ in range(10)]
            await settle()
            for each in callers:
                each.writer.transport.abort()
            await settle()
        held = server.connections
        kept = (held._idle, held._calls, held._uploading, held._unread)
        assert [len(each) for each in kept] == [0, 0, 0, 0]
        assert server.open == 0


async def test_without_descriptors_the_log_has_one_line_and_serving_goes_on(caplog):
    async with served(size_of_body) as server:
        callers = [socket.socket() for _ in range(45)]
        for each in callers:
            each.setblocking(False)
        free = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free.fileno() + 30, hard))
            free.close()
            loop = asyncio.get_running_loop()
            for each in callers:
                await loop.sock_connect(each, ("127.0.0.1", server.port))
            await asyncio.sleep(1.2)  # asyncio's pause
            await loop.sock_sendall(callers[-1], GET)
            answer = await asyncio.wait_for(loop.sock_recv(callers[-1], 1000), 8)
            assert answer.startswith(b"HTTP/1.1 200 ")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in callers:
                each.close()
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert "file descriptors" in caplog.text


# Readers


async def endless(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (scope["path"] == "/endless") and not send.__self__.disconnected:
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
    await send({"type": "http.response.body", "body": b"x" * 5_000_000})


@pytest.mark.parametrize("path", [b"/endless", b"/whole"])
async def test_a_reader_that_stops_is_cut_off(path, monkeypatch):
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    async with served(endless) as server:
        caller = await server.connect(GET.replace(b"/", path, 1))
        await settle()
        (connection,) = server.server.server_state.connections
        if path == b"/endless":
            assert connection.unread_bytes < 2 * protocol.HIGH_WATER_LIMIT
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not server.open:
                break
        assert server.open == 0
        assert caller.reader


async def test_an_unread_answer_is_cut_off_on_a_connection_that_closes(monkeypatch):
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    async with served(endless) as server:
        await server.connect(b"GET /whole HTTP/1.0\r\n\r\n")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not server.open:
                break
        assert server.open == 0


async def test_a_slow_reader_that_goes_on_reading_gets_all_of_its_answer(monkeypatch):
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    async with served(endless, keep_alive_seconds=0.1) as server:
        caller = await server.connect(GET.replace(b"/", b"/whole", 1))
        size = 0
        while size < 5_000_000:
            await asyncio.sleep(0.01)
            piece = await caller.reader.read(65536)
            assert piece
            size += len(piece)
        caller.writer.close()


async def test_the_largest_unread_answer_is_cut_when_all_are_too_large(monkeypatch):
    monkeypatch.setattr(connections, "MAX_UNREAD_BYTES", 3_000_000)
    async with served(endless) as server:
        callers = [await server.connect(GET.replace(b"/", b"/whole", 1)) for _ in range(10)]
        await settle()
        unread = [each.unread_bytes for each in server.server.server_state.connections]
        assert 0 < sum(unread) <= 3_000_000
        assert len(unread) < len(callers)


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
