"""Callers that misuse connections: silent, slow, cut off, out of step, or gone in mid-stream."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.bodies import MODELS
from tests.fuzz.case import Case, Step, randomness, request, sizes

KIND = "callers"
Script = tuple[tuple[Step, ...], int]  # and how many answers must come
_LIVEZ = b"GET /livez HTTP/1.1\r\nHost: fuzz\r\n\r\n"


def _call(rng: random.Random, **fields: Any) -> bytes:
    body = {
        "model": rng.choice(MODELS),
        "messages": [{"role": "user", "content": "two blue lamps"}],
    }
    body |= {"max_tokens": 8} | fields
    return request("/v1/chat/completions", json.dumps(body).encode())


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _silent(rng: random.Random) -> Script:
    return (Step("pause", amount=rng.uniform(0.1, 4)), Step(rng.choice(("close", "reset")))), 0


def _dripping(rng: random.Random) -> Script:
    steps = (Step("drip", _call(rng)[: rng.randrange(10, 60)], 0.05), Step("reset"))
    return steps, 0


def _dripping_to_the_end(rng: random.Random) -> Script:
    return (Step("drip", _LIVEZ, 0.02), Step("answers", amount=1)), 1


def _half(rng: random.Random) -> Script:
    steps = (Step("send", _cut(rng, _call(rng))), Step("pause", amount=rng.uniform(0, 1)))
    return (*steps, Step(rng.choice(("close", "reset")))), 0


def _half_closed(rng: random.Random) -> Script:
    """The caller closes its side after half of the request, and still reads."""
    return (Step("send", _cut(rng, _call(rng))), Step("close"), Step("answers", amount=1)), 0


def _wrong_length(rng: random.Random) -> Script:
    length = rng.choice(
        (
            "0",
            "1",
            "5",
            "99999999999",
            "-1",
            "abc",
            "",
            "1e3",
            "0x10",
            "1, 2",
            "+5",
            "18446744073709551616",
        )
    )
    data = request(
        "/v1/completions", b'{"model":"shop-base","prompt":"x"}', {"content-length": length}
    )
    return (Step("send", data), Step("pause", amount=0.3), Step("reset")), 0


def _wrong_encoding(rng: random.Random) -> Script:
    encoding = rng.choice(
        (
            "chunked",
            "gzip",
            "chunked, chunked",
            "identity",
            "xchunked",
            "CHUNKED",
            "chunked\r\ntransfer-encoding: gzip",
        )
    )
    body = rng.choice(
        (
            b"5\r\nhello\r\n0\r\n\r\n",
            b"zz\r\n",
            b"FFFFFFFFFFFFFFFFF\r\n",
            b"-1\r\n",
            b"5;" + b"a" * 70_000,
            b"0\r\n" + b"a: b\r\n" * 2000,
        )
    )
    fields = {"transfer-encoding": encoding} | (
        {} if rng.random() < 0.5 else {"content-length": "5"}
    )
    head = request("/v1/completions", b"", fields)
    return (Step("send", head + body), Step("pause", amount=0.3), Step("reset")), 0


def _pipelined(rng: random.Random) -> Script:
    count = rng.randrange(2, 12)
    calls = [rng.choice((_LIVEZ, _call(rng, max_tokens=2))) for _ in range(count)]
    return (Step("send", b"".join(calls)), Step("answers", amount=count)), count


def _pipelined_many(rng: random.Random) -> Script:
    count = sizes(rng, 3000)
    return (Step("send", _LIVEZ * count), Step("pause", amount=0.2), Step("reset")), 0


def _huge_head(rng: random.Random) -> Script:
    size = sizes(rng, 2_000_000)
    head = rng.choice(
        (
            b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * (size // 6) + b"\r\n",
            b"GET /livez HTTP/1.1\r\nHost: x\r\na: " + b"b" * size + b"\r\n\r\n",
            b"G" * size + b" / HTTP/1.1\r\n\r\n",
        )
    )
    return (Step("send", head), Step("answers", amount=1)), 0


def _no_http(rng: random.Random) -> Script:
    data = rng.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n" * 1000,
            b"\0" * 1000,
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET http://x/livez HTTP/1.1\r\nHost: y\r\n\r\n",
            b"GET /livez HTTP/1.0\r\n\r\n",
            b"GET  /livez  HTTP/1.1\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET /livez HTTP/1.1\nHost: x\n\n",
            b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 5\r\n\r\n",
            rng.randbytes(sizes(rng, 100_000)),
        )
    )
    return (Step("send", data), Step("pause", amount=0.3), Step("reset")), 0


def _gone(rng: random.Random) -> Script:
    """A stream, or a call, whose caller hangs up at any point."""
    data = _call(
        rng, stream=rng.random() < 0.8, max_tokens=200, n=rng.choice((1, 1, 4)), ignore_eos=True
    )
    wait = rng.choice(
        (Step("pause", amount=rng.uniform(0, 1.5)), Step("read", amount=sizes(rng, 20_000)))
    )
    return (Step("send", data), wait, Step(rng.choice(("close", "reset")))), 0


def _slow_reader(rng: random.Random) -> Script:
    data = _call(rng, stream=True, max_tokens=300, n=rng.choice((1, 8)), ignore_eos=True)
    return (Step("send", data), Step("sip", amount=rng.uniform(1, 4)), Step("reset")), 0


def _slow_readers_of_much(rng: random.Random) -> Script:
    data = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * sizes(rng, 50)
    return (Step("send", data), Step("sip", amount=rng.uniform(1, 3)), Step("reset")), 0


def _upload_gone(rng: random.Random) -> Script:
    head = request("/v1/completions", b"", {"content-length": "16000000"})
    part = b'{"model":"' + b"a" * sizes(rng, 15_000_000)
    return (Step("send", head + part), Step("pause", amount=rng.uniform(0, 1)), Step("reset")), 0


SCRIPTS: tuple[Callable[[random.Random], Script], ...] = (
    _silent,
    _dripping,
    _dripping_to_the_end,
    _half,
    _half,
    _half_closed,
    _wrong_length,
    _wrong_encoding,
    _pipelined,
    _pipelined_many,
    _huge_head,
    _no_http,
    _gone,
    _gone,
    _gone,
    _slow_reader,
    _slow_readers_of_much,
    _upload_gone,
)


def make(seed: int, number: int) -> Case:
    rng = randomness(seed, KIND, number)
    script = rng.choice(SCRIPTS)
    steps, answers = script(rng)
    return Case(seed, KIND, number, script.__name__.strip("_").replace("_", " "), steps, answers)
