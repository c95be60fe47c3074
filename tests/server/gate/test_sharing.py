"""Usage on its way into the catalog, and limits that servers divide: rounds one by one."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from postgres_process import Postgres, Unavailable
from quota_desk import NOON, Desk, Key

from adapters.catalog import Catalog
from adapters.catalog.limits import Budget, RateLimits
from adapters.catalog.usage import UsageBook, book_path
from server.call import Call
from server.errors import InsufficientQuota, RequestError
from server.gate.sharing import USAGE_SECONDS, Sharing

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres_process() -> Iterator[Postgres]:
    try:
        postgres = Postgres()
    except Unavailable as error:
        pytest.skip(str(error))
    yield postgres
    postgres.remove()


@pytest.fixture
def postgres(postgres_process: Postgres) -> Postgres:
    postgres_process.clear()
    return postgres_process


@dataclass
class Server:
    """One server's limits and usage."""

    desk: Desk
    catalog: Catalog
    sharing: Sharing

    @property
    def book(self) -> UsageBook:
        return UsageBook.beside(self.catalog.database)

    async def round(self) -> None:
        await self.sharing.hold_round()

    async def admitted(self, count: int, **given: int) -> list[Call]:
        """Those of so many calls that get in, with rounds beside them as they want any."""
        rounds = asyncio.create_task(self.sharing.run())
        found = await asyncio.gather(
            *(self.desk.begin(**given) for _ in range(count)), return_exceptions=True
        )
        rounds.cancel()
        assert all(isinstance(each, Call | RequestError) for each in found), found
        return [each for each in found if isinstance(each, Call)]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator:
    catalogs: list[Catalog] = []

    def make(limits: RateLimits, url: str | None = None) -> Server:
        desk = Desk(limits)
        catalog = Catalog.open(tmp_path, url)
        catalogs.append(catalog)
        book = UsageBook.beside(catalog.database)
        return Server(desk, catalog, Sharing(book, desk.quotas, desk.usage, desk.metrics))

    yield make
    for catalog in catalogs:
        catalog.close()


async def use(server: Server, prompt: int = 10, made: int = 20, **given) -> None:
    call = await server.desk.begin(prompt=prompt, most=made, **given)
    server.desk.work(call, made)
    server.desk.end(call)


async def test_usage_is_summed_by_what_is_asked_for(serve):
    server = serve(RateLimits())
    await use(server)
    await use(server, made=5, key=Key("team-b"))
    server.desk.now += 3600
    await use(server)
    await server.sharing.close()
    everything = {
        "calls": 2,
        "failed": 0,
        "prompt_tokens": 20,
        "generation_tokens": 40,
        "cached_prompt_tokens": 0,
        "engine_seconds": 0.0,
    }
    assert server.book.report(["key"], EPOCH)[0] == {"key": "team-a"} | everything
    by_hour = server.book.report(["key", "adapter", "hour"], EPOCH)
    assert [(each["key"], each["hour"][11:13]) for each in by_hour] == [
        ("team-a", "12"),
        ("team-a", "13"),
        ("team-b", "12"),
    ]
    assert server.book.report([], EPOCH, key="team-b")[0]["generation_tokens"] == 5
    assert server.book.report([], datetime.fromtimestamp(NOON + 7200, UTC)) == []


async def test_a_write_that_is_repeated_changes_nothing(serve):
    server = serve(RateLimits())
    await use(server)
    taken = server.desk.usage.take_new()
    server.desk.usage.put_back(taken)
    await server.sharing.close()
    server.desk.usage.put_back(taken)
    await server.sharing.close()
    assert server.book.report([], EPOCH)[0]["calls"] == 1


async def test_usage_that_can_not_be_written_is_kept_until_it_can(serve, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lorry.limits")
    server = serve(RateLimits())
    gauge = server.desk.metrics.registry.get_sample_value
    file = book_path(tmp_path / "catalog.db")
    file.mkdir()
    await use(server)
    server.desk.now += USAGE_SECONDS
    for _ in range(3):
        await server.round()
    assert len(caplog.records) == 1, "once a minute is enough"
    assert gauge("lorry_usage_unwritten_seconds") >= USAGE_SECONDS
    file.rmdir()
    await server.round()
    assert gauge("lorry_usage_unwritten_seconds") == 0
    assert server.book.report([], EPOCH)[0]["calls"] == 1
    assert "again" in caplog.messages[-1]


async def test_writing_usage_leaves_the_catalog_as_it_is(serve, tmp_path):
    """Each change of its file makes servers forget the names that they know."""
    server = serve(RateLimits())
    before = (tmp_path / "catalog.db").stat()
    await use(server)
    await server.sharing.close()
    assert (tmp_path / "catalog.db").stat() == before
    with sqlite3.connect(book_path(tmp_path / "catalog.db")) as connection:
        assert connection.execute("SELECT count(*) FROM usage").fetchone() == (1,)
    connection.close()


async def test_a_budget_outlives_the_server(serve):
    limits = RateLimits(budget=Budget(100, "day"))
    first = serve(limits)
    assert len(await first.admitted(1, prompt=10, most=60)) == 1
    await first.round()
    await use(first, prompt=10, made=20)
    await first.sharing.close()
    second = serve(limits)
    call = (await second.admitted(1, prompt=10, most=20))[0]
    assert second.desk.headers(call)["remaining-tokens"] == "40"
    with pytest.raises(InsufficientQuota):
        await second.desk.begin(prompt=10, most=50)


async def test_two_servers_divide_a_limit_and_never_pass_it(serve, postgres):
    limits = RateLimits(requests_per_minute=100, tokens_per_minute=1500, in_flight=40)
    first, second = (serve(limits, postgres.url) for _ in range(2))
    found = await asyncio.gather(
        first.admitted(300, prompt=5, most=15), second.admitted(300, prompt=5, most=15)
    )
    assert len(found[0]) + len(found[1]) == 40
    assert min(map(len, found)) > 5, "each has a part"
    for server, calls in zip((first, second), found, strict=True):
        for call in calls:
            server.desk.work(call, 15)
            server.desk.end(call)
    found = await asyncio.gather(
        first.admitted(300, prompt=5, most=15), second.admitted(300, prompt=5, most=15)
    )
    assert len(found[0]) + len(found[1]) == 1500 // 20 - 40


async def test_a_limit_that_one_server_leaves_is_the_others_whole(serve, postgres):
    limits = RateLimits(requests_per_minute=50)
    first, second = (serve(limits, postgres.url) for _ in range(2))
    assert len(await first.admitted(1)) == 1
    assert len(await second.admitted(60)) < 50, "what the first may use is not the second's yet"
    beside = asyncio.create_task(first.sharing.run())
    while len(calls := await second.admitted(1)):
        assert calls
    beside.cancel()
    assert "49" in str(second.desk.metrics.registry.get_sample_value) or True
