"""All connections: how many there are, which gives way, and unread answers."""

from __future__ import annotations

import asyncio
import resource
import socket

import pytest
from sockets import GET, POST, Caller, Held, served, settle, size_of_body

from server.http import connections, protocol
from server.http.connections import SPARE_CONNECTIONS

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


async def test_a_web_page_can_read_that_the_server_is_at_its_limit():
    origin = "https://app.example"
    page = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: %s\r\n\r\n" % origin.encode()
    async with served(Held(), connections=20, origins=(origin,)) as server:
        for _ in range(20):
            await server.connect(GET)
        await settle()
        refused = await (await server.connect(page)).answer()
        assert (refused.status, refused.code) == (503, "too_many_connections")
        assert refused.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-origin" not in (await server.get("/v1/models")).headers


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
