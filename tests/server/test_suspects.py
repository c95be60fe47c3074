"""Which request ends the engine: the one that ends it alone, and nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from server import suspects as module
from server.errors import PoisonRequest
from server.suspects import Suspects


def call(digest: str) -> Any:
    return SimpleNamespace(digest=digest, request_id=f"id-{digest}", response_model="red@1")


class Died(Exception):
    pass


async def run(suspects: Suspects, digest: str, inside: set[str], seconds: float = 0.0) -> set[str]:
    """The requests that were in the engine beside this one."""
    async with suspects.inside(digest):
        inside.add(digest)
        met = set(inside)
        await asyncio.sleep(seconds)
        met |= inside
        inside.discard(digest)
    return met


async def die(suspects: Suspects, digest: str) -> None:
    async with suspects.inside(digest):
        suspects.blame([call(digest)])
        raise Died


async def test_innocent_requests_run_together_after_one_death() -> None:
    suspects = Suspects()
    suspects.blame([call("a"), call("b")])
    inside: set[str] = set()
    met = await asyncio.gather(*(run(suspects, each, inside, 0.01) for each in "abc"))
    assert met[2] == {"a", "b", "c"}


async def test_a_request_that_was_inside_at_two_deaths_runs_alone_and_is_cleared() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([call("a"), call("b")])
    inside: set[str] = set()
    met = await asyncio.gather(*(run(suspects, each, inside, 0.01) for each in "xaybz"))
    assert met[1] == {"a"}
    assert met[3] == {"b"}
    met = await asyncio.gather(*(run(suspects, each, inside, 0.01) for each in "ab"))
    assert met == [{"a", "b"}] * 2  # both have passed


async def test_one_that_ends_the_engine_alone_is_refused_and_the_others_are_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([call("poison"), call("a"), call("b")])
    with pytest.raises(Died):
        await die(suspects, "poison")
    with pytest.raises(PoisonRequest) as refused:
        suspects.check("poison")
    assert (refused.value.status, refused.value.code) == (422, "poison_request")
    suspects.check("a")
    inside: set[str] = set()
    met = await asyncio.gather(*(run(suspects, each, inside, 0.01) for each in "ab"))
    assert met == [{"a", "b"}] * 2
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert all(words in line for words in ("id-poison", "red@1", "sha256:poison", "3 deaths"))


async def test_a_lone_request_gets_no_third_try() -> None:
    suspects = Suspects()
    suspects.blame([call("poison")])
    suspects.check("poison")
    suspects.blame([call("poison")])
    with pytest.raises(PoisonRequest):
        async with suspects.inside("poison"):
            pytest.fail("it ran")


async def test_it_is_refused_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REFUSED_SECONDS", 0.05)
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([call("poison")])
    with pytest.raises(PoisonRequest):
        suspects.check("poison")
    await asyncio.sleep(0.06)
    suspects.check("poison")


async def test_a_call_of_several_prompts_is_cleared_when_all_have_passed() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([call("a"), call("b")])
    inside: set[str] = set()
    first, second, other = (asyncio.create_task(run(suspects, "a", inside, 0.02)) for _ in "123")
    await first
    assert suspects._deaths["a"] == 2
    assert await second == {"a"}  # alone, too
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_suspect_that_gives_up_waiting_or_running_holds_nobody_up() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([call("a"), call("b")])
    inside: set[str] = set()
    first = asyncio.create_task(run(suspects, "a", inside, 60))
    second = asyncio.create_task(run(suspects, "b", inside, 60))
    third = asyncio.create_task(run(suspects, "x", inside))
    await asyncio.sleep(0.01)
    assert inside == {"a"}
    second.cancel()
    await asyncio.sleep(0.01)
    assert not third.done()
    first.cancel()
    await asyncio.wait_for(third, 1)
    await asyncio.gather(first, second, return_exceptions=True)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    suspects = Suspects()
    suspects.blame([call(str(number)) for number in range(10)])
    assert list(suspects._deaths) == ["7", "8", "9"]
    for number in range(10):
        for _ in range(2):
            suspects.blame([call(str(number))])
    assert list(suspects._poison) == ["7", "8", "9"]
    refused: Callable[[str], Any] = suspects.check
    refused("1")
