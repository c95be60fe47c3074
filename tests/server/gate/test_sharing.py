"""Usage on its way into the catalog, and limits that servers divide: rounds one by one."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from postgres_process import Postgres, Unavailable
from quota_desk import NOON, Desk, make_key

from adapters.catalog import Catalog
from adapters.catalog.shares import GONE_SECONDS, SILENT_SECONDS
from adapters.catalog.usage import UsageBook, book_path
from adapters.keys import Budget, RateLimits
from server.call import Call
from server.errors import InsufficientQuota, RequestError
from server.gate.sharing import ALONE_SECONDS, USAGE_SECONDS, Sharing

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
        return self.catalog.usage

    async def round(self) -> None:
        await self.sharing.hold_round()

    async def admitted(self, count: int, **given: int) -> list[Call]:
        """Those of so many calls at once that get in; others are refused."""
        asked = (self.desk.begin(**given) for _ in range(count))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(each, Call | RequestError) for each in found), found
        return [each for each in found if isinstance(each, Call)]

    def finish(self, calls: list[Call], made: int) -> None:
        for call in calls:
            self.desk.work(call, made)
            self.desk.end(call)


@asynccontextmanager
async def rounds(*servers: Server) -> AsyncIterator[None]:
    """Servers that hold rounds beside their calls, as they do when they run."""
    tasks = [asyncio.create_task(server.sharing.run()) for server in servers]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator:
    catalogs: list[Catalog] = []

    def make(limits: RateLimits, url: str | None = None) -> Server:
        desk = Desk(limits, is_real=url is not None)
        catalog = Catalog.open(tmp_path, url)
        catalogs.append(catalog)
        book = catalog.usage
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
    await use(server, made=5, key=make_key("team-b"))
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
    first, second = serve(limits), serve(limits)
    async with rounds(first):
        await use(first, prompt=10, made=50)
    await first.sharing.close()
    async with rounds(second):
        call = await second.desk.begin(prompt=10, most=20)
        assert second.desk.headers(call)["remaining-tokens"] == "10"
        with pytest.raises(InsufficientQuota):
            await second.desk.begin(prompt=1, most=10)


async def test_what_a_budget_has_spent_is_counted_once_when_it_is_written(serve):
    server = serve(RateLimits(budget=Budget(100, "month")))
    async with rounds(server):
        await use(server, prompt=10, made=20)
    running = await server.desk.begin(prompt=10, most=20)
    for _ in range(3):
        server.desk.now += USAGE_SECONDS
        await server.round()
        assert server.desk.headers(running)["remaining-tokens"] == "40"


async def test_two_servers_divide_a_limit_and_never_pass_it(serve, postgres):
    """LiteLLM #10555: its instances drift apart, and each admits the whole limit."""
    limits = RateLimits(requests_per_minute=100, tokens_per_minute=1500, in_flight=40)
    servers = first, second = [serve(limits, postgres.url) for _ in range(2)]
    async with rounds(*servers):
        admitted = 0
        for _ in range(2):
            found = await asyncio.gather(
                *(server.admitted(300, prompt=5, most=15) for server in servers)
            )
            assert sum(map(len, found)) <= 40
            admitted += sum(map(len, found))
            for server, calls in zip(servers, found, strict=True):
                server.finish(calls, 15)
        assert admitted == 1500 // 20, "all that the limit on tokens has room for"
        assert len(await first.admitted(1)) + len(await second.admitted(1)) == 0


async def test_what_one_server_leaves_of_a_limit_is_the_others(serve, postgres):
    limits = RateLimits(requests_per_minute=50)
    first, second = serve(limits, postgres.url), serve(limits, postgres.url)
    async with rounds(first, second):
        assert len(await first.admitted(1)) == 1
        assert sum([len(await second.admitted(1)) for _ in range(60)]) == 49
    await second.sharing.close()
    await first.round()
    assert len(await first.admitted(1)) == 0


async def test_a_budget_is_one_for_all_servers(serve, postgres):
    limits = RateLimits(budget=Budget(1000, "month"))
    servers = first, second = [serve(limits, postgres.url) for _ in range(2)]
    async with rounds(*servers):
        found = await asyncio.gather(*(each.admitted(60, prompt=5, most=15) for each in servers))
        assert sum(map(len, found)) == 1000 // 20
        for server, calls in zip(servers, found, strict=True):
            server.finish(calls, 5)
        spent = 50 * 10
        found = await asyncio.gather(*(each.admitted(60, prompt=5, most=15) for each in servers))
        assert sum(map(len, found)) == (1000 - spent) // 20
    for server in servers:
        await server.sharing.close()
    assert first.book.report([], EPOCH)[0]["generation_tokens"] == 250
    total = second.book.report(["key"], EPOCH)[0]
    assert total["calls"] - total["failed"] == 50


async def test_servers_go_on_by_themselves_while_the_database_is_away(serve, postgres, caplog):
    limits = RateLimits(requests_per_minute=40)
    servers = first, second = [serve(limits, postgres.url) for _ in range(2)]
    async with rounds(*servers):
        for server in servers:
            assert len(await server.admitted(1)) == 1
    postgres.stop()
    try:
        for server in servers:
            server.sharing._last_round -= ALONE_SECONDS
            await server.round()
        assert "each server holds limits by itself" in caplog.text
        found = [len(await each.admitted(60)) + 1 for each in servers]
        assert min(found) >= 40 // 2, "its share, or an equal part"
        assert sum(found) <= 2 * 40, "the bound that docs/limits.md states"
    finally:
        postgres.start()
    async with rounds(*servers):
        await first.round()
    assert len(await second.admitted(1)) == 0


async def test_what_a_server_that_ended_had_not_used_goes_to_others(serve, postgres):
    limits = RateLimits(requests_per_minute=40, in_flight=15)
    first, second = serve(limits, postgres.url), serve(limits, postgres.url)
    async with rounds(first):
        assert len(await first.admitted(10)) == 10
    await first.round()

    def silence(seconds: float) -> None:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(
                f"UPDATE limit_servers SET seen_at = now() - interval '{seconds} s'"
                f" WHERE server = '{first.sharing._server}'"
            )

    async with rounds(second):
        silence(SILENT_SECONDS)
        found = await second.admitted(60)
        assert len(found) == 15, "calls of a server that ended are no longer in flight"
        second.finish(found, 1)
        found = await second.admitted(60)
        second.finish(found, 1)
        found += await second.admitted(60)
        assert 10 + 15 + len(found) == 40, "what it used of the minute still counts"
        silence(GONE_SECONDS)
        await second.round()
        second.finish(found[15:], 1)
        assert len(await second.admitted(60)) == 10
