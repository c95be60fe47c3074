"""Request bodies are bounded in size, time and sum, and a caller is told at once."""

from __future__ import annotations

import asyncio

import pytest
from sockets import served
from standin_server import TOKEN

from server.admin.guard import AdminGuard
from server.disconnects import Disconnected
from server.errors import RequestTooLarge, Unavailable
from server.http import bodies
from server.http.bodies import Bodies, check_announced

INFERENCE = "/v1/chat/completions"
ADMIN = f"Authorization: Bearer {TOKEN}\r\n".encode()


def head(path: str, length: int | bytes, more: bytes = b"") -> bytes:
    announced = b"%d" % length if isinstance(length, int) else length
    first = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path.encode()
    return first + more + b"Content-Length: %s\r\n\r\n" % announced


class Sender:
    """A caller whose pieces of a body arrive one by one."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue = asyncio.Queue()

    def send(self, piece: bytes, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def read(self, limits: Bodies) -> asyncio.Task[bytes]:
        return asyncio.create_task(limits.read({}, self.messages.get))


@pytest.mark.parametrize("path", [INFERENCE, "/v1/models", "/metrics", "/livez", "/nothing"])
@pytest.mark.parametrize("length", [50_001, 10_000_000_000, b"9" * 500, b"00000000050001"])
async def test_an_announced_length_above_the_limit_is_a_413_before_any_byte(house, path, length):
    async with served(house.app) as server:
        caller = await server.connect(head(path, length))
        answer = await caller.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")


async def test_lengths_within_the_limit_pass():
    for announced in ("", "0", "10", "0010", "-1", "x"):
        check_announced({"content-length": announced}, 10)
    with pytest.raises(RequestTooLarge):
        check_announced({"content-length": "11"}, 10)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/livez", "/nothing", "/admin/adapters"]
)
async def test_paths_that_read_no_body_answer_without_it(house, path):
    async with served(house.app) as server:
        caller = await server.connect(head(path, 40_000) + b"x")
        assert (await caller.answer()).status in (200, 401, 404, 405)


async def test_a_body_of_one_byte_now_and_then_is_a_408():
    limits = Bodies(max_bytes=1000, max_sum=1000, seconds=0.2)
    sender = Sender()
    reading = sender.read(limits)
    while not reading.done():
        sender.send(b"x")
        await asyncio.sleep(0.01)
    error = reading.exception()
    assert (error.status, error.code) == (408, "request_too_slow")


async def test_a_silent_body_is_a_408_sooner(monkeypatch):
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.05)
    reading = Sender().read(Bodies(max_bytes=1000, max_sum=1000, seconds=60))
    error = (await asyncio.wait({reading}, timeout=2))[0].pop().exception()
    assert error.code == "request_too_slow"


async def test_the_largest_of_too_many_bodies_is_told_to_come_again():
    limits = Bodies(max_bytes=1000, max_sum=2000, seconds=60)
    senders = [Sender() for _ in range(4)]
    reading = [each.read(limits) for each in senders]
    for sender, size in zip(senders, (600, 900, 400, 99), strict=True):
        sender.send(b"x" * size)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    senders[3].send(b"x" * 2)
    await asyncio.wait({reading[1]}, timeout=2)
    error = reading[1].exception()
    assert isinstance(error, Unavailable)
    assert (error.code, error.retry_after) == ("too_many_bodies", 1)
    for sender in (senders[0], senders[2], senders[3]):
        sender.send(b"end", more=False)
    assert [len(await reading[n]) for n in (0, 2, 3)] == [603, 403, 104]
    assert limits._held == 0


async def test_what_ended_bodies_held_counts_no_more():
    limits = Bodies(max_bytes=1000, max_sum=1000, seconds=60)
    for _ in range(5):
        sender = Sender()
        reading = sender.read(limits)
        sender.send(b"x" * 900)
        sender.messages.put_nowait({"type": "http.disconnect"})
        with pytest.raises(Disconnected):
            await reading
    assert limits._held == 0


async def test_many_unfinished_bodies_hold_no_more_than_their_sum():
    limits = Bodies(max_bytes=50_000, max_sum=200_000, seconds=60)
    ends = []

    async def app(scope, receive, send):
        try:
            ends.append(len(await limits.read({}, receive)))
        except Unavailable:
            ends.append("full")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async with served(app) as server:
        callers = [await server.connect(head("/", 49_000) + b"x" * 48_000) for _ in range(20)]
        async with asyncio.timeout(5):
            while len(ends) < 16:  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.01)
        assert limits._held <= 200_000
        small = await server.connect(head("/", 3) + b"xxx")
        assert (await small.answer()).status == 200
        assert callers
    assert ends[:16] == ["full"] * 16


async def test_a_json_body_of_the_admin_api_that_drips_is_a_408(house):
    (guard,) = (each for each in house.app.user_middleware if each.cls is AdminGuard)
    assert guard.kwargs["body_seconds"] == 120
    guard.kwargs["body_seconds"] = 0.1
    async with served(house.app) as server:
        caller = await server.connect(head("/admin/adapters", 100, ADMIN) + b"{")
        answer = await caller.answer()
        assert (answer.status, answer.code) == (408, "request_too_slow")
