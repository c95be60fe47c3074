"""HTTPS through our own protocol class: a real handshake, streams, refusals, and closing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from api_keys import make_key
from certificates import write_certificate
from sockets import GET, Served, served
from standin_answers import Stream
from standin_server import House, standin_settings

from server import preflight
from server.errors import SettingsInvalid
from server.http import protocol


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "server.pem")


@pytest.fixture
async def site(house: House, certificate: Path) -> AsyncIterator[Served]:
    async with served(house.app, certificate=certificate) as site:
        yield site


@pytest.fixture
async def client(site: Served, certificate: Path) -> AsyncIterator[httpx2.AsyncClient]:
    trusted = ssl.create_default_context(cafile=certificate)
    url = f"https://127.0.0.1:{site.port}"
    async with httpx2.AsyncClient(base_url=url, verify=trusted) as client:
        yield client


async def test_calls_streams_and_refusals_on_one_connection(house, site, client):
    key = make_key(house.catalog)
    body = {"model": "red", "messages": [{"role": "user", "content": "x" * 40_000}]}
    answer = await client.post("/v1/chat/completions", json=body, headers=key)
    assert (answer.status_code, answer.json()) == (200, {"model": "red@1"})
    assert (await client.get("/v1/models")).status_code == 401
    assert (await client.get("/livez")).status_code == 200
    assert site.open == 1
    house.inner.answer = stream = Stream()
    async with client.stream(
        "POST", "/v1/chat/completions", json=body | {"stream": True}, headers=key
    ) as answer:
        assert await anext(answer.aiter_bytes())
    async with asyncio.timeout(5):
        while not stream.ended:  # noqa: ASYNC110 - the caller has left
            await asyncio.sleep(0.005)


async def test_a_refused_upload_is_answered_and_closed(house, site, certificate, monkeypatch):
    """Half-closing is how plain connections end then; TLS has no such thing: it lingers."""
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.1)
    make_key(house.catalog)
    trusted = ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=trusted)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    writer.write(b"Content-Length: 40000\r\n\r\nx")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.write(b"x" * 39_999)
    assert b"invalid_api_key" in await asyncio.wait_for(reader.read(), 20)
    writer.transport.abort()


async def test_a_head_that_is_too_large_is_a_431(site, certificate):
    trusted = ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=trusted)
    writer.write(b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000)
    assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
    writer.transport.abort()


async def test_plain_http_gets_no_answer(site):
    caller = await site.connect(GET)
    assert await caller.is_closed()
    assert site.open == 0


def test_files_that_are_no_certificate_stop_the_start(certificate, tmp_path):
    no_key = tmp_path / "no-key.pem"
    no_key.write_text(certificate.read_text().partition("-----BEGIN PRIVATE")[0])
    other = write_certificate(tmp_path / "other.pem")
    for files in ((tmp_path / "none.pem", None), (no_key, None), (no_key, other)):
        settings = standin_settings(tmp_path, ssl_certfile=files[0], ssl_keyfile=files[1])
        with pytest.raises(SettingsInvalid, match="can't speak TLS"):
            preflight.check_certificate(settings)
    preflight.check_certificate(standin_settings(tmp_path, ssl_certfile=certificate))
