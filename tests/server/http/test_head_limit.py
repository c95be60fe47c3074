"""A head without an end gets a 400 and a closed connection, whatever it consists of."""

import asyncio
import itertools

import pytest
import uvicorn

from server.http.head_limit import MAX_HEAD_BYTES, BoundedHeads

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
ENDLESS = {
    "url": (b"GET /", b"a" * 1000),
    "names": (b"GET / HTTP/1.1\r\n", b"a:b\r\n" * 200),
    "one header": (b"GET / HTTP/1.1\r\na: ", b"b" * 1000),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a:b\r\n" * 200),
}


@pytest.fixture
async def port():
    async def app(scope, receive, send):
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % size})

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=BoundedHeads, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


@pytest.mark.parametrize("part", ENDLESS)
async def test_a_head_without_end_is_cut_off(port, part):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin, more = ENDLESS[part]
    writer.write(begin)
    sent = 0
    try:
        for _ in itertools.repeat(None, 2000):
            writer.write(more)
            await writer.drain()
            sent += len(more)
            await asyncio.sleep(0)
            if reader.at_eof() or writer.is_closing():
                break
        answer = await reader.read()
    except ConnectionError:
        answer = b""
    writer.close()
    assert sent < 20 * MAX_HEAD_BYTES
    assert not answer or answer.startswith(b"HTTP/1.1 400 "), answer


async def test_long_bodies_and_normal_heads_pass_on_one_connection(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for size in (0, 10 * MAX_HEAD_BYTES, 3):
        head = b"X-Long: %s\r\nContent-Length: %d\r\n\r\n" % (b"a" * 30_000, size)
        writer.write(POST + head + b"b" * size)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\n%d\r\n" % size in answer
    writer.close()
