"""The wanted counters from a server's metrics."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtest.errors import TargetUnfit
from loadtest.judge.scrape import REQUESTS, VLLM_REQUESTS, Sample, read_sample, scrape

TEXT = """\
# HELP lorry_requests_total Calls by how they ended.
# TYPE lorry_requests_total counter
lorry_requests_total{adapter="orders",version="1",endpoint="/v1/completions",outcome="ok"} 3.0
lorry_requests_total{adapter="base",version="",endpoint="/v1/completions",outcome="ok"} 2.0
lorry_requests_in_flight{adapter="orders",version="1"} 9.0
lorry_request_duration_seconds_bucket{adapter="orders",version="1",le="0.01"} 1.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="a\\"b"} 1.2e+02
process_start_time_seconds 1.7e+09
"""
ORDERS = frozenset(
    {
        ("adapter", "orders"),
        ("version", "1"),
        ("endpoint", "/v1/completions"),
        ("outcome", "ok"),
    }
)


async def scraped(body: bytes, **options) -> Sample:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        return await scrape(session, str(server.make_url("/")), {}, **options)


async def test_wanted_counters_are_read_by_label():
    sample = await scraped(TEXT.encode())
    assert sample.counters[REQUESTS][ORDERS] == 3
    assert sample.total(REQUESTS) == 5
    (labels,) = sample.counters[VLLM_REQUESTS]
    assert dict(labels)["model_name"] == 'a"b'
    assert sample.total(VLLM_REQUESTS) == 120
    assert set(sample.counters) == {REQUESTS, VLLM_REQUESTS, "process_start_time_seconds"}


def test_growth_includes_new_and_ended_series():
    before = read_sample('lorry_requests_total{adapter="a"} 3\nlorry_requests_total{adapter="b"} 2')
    after = read_sample('lorry_requests_total{adapter="b"} 5\nlorry_requests_total{adapter="c"} 1')
    grown = {dict(labels)["adapter"]: by for labels, by in after.growth(before, REQUESTS).items()}
    assert grown == {"a": -3, "b": 3, "c": 1}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'lorry_requests_total{adapter="a"} many\n', "is not Prometheus text"),
        (b"\xff\xfe", "is not Prometheus text"),
        (b"#" * 2000, "more than 1000 bytes"),
    ],
)
async def test_unreadable_metrics_are_reported(body, message):
    with pytest.raises(TargetUnfit, match=message):
        await scraped(body, max_bytes=1000)
