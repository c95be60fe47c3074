"""The engine is started again when it ends, with what it held; one that ends too often is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
from mortal_engine import MortalStandIn
from residency_stage import Stage
from standin_server import StandInApp

from server import supervisor as module
from server.engine.interface import Death, EngineGone
from server.errors import Unavailable
from server.gate.gate import FairAdmission
from server.gate.queue import Limits
from server.lifecycle import Attached, Lifecycle, Phase
from server.presence import Presence
from server.supervisor import Supervisor
from server.suspects import Suspects


class Theatre(SimpleNamespace):
    stage: Stage
    engine: MortalStandIn
    gate: FairAdmission
    lifecycle: Lifecycle
    presence: Presence
    suspects: Suspects
    supervisor: Supervisor
    run: asyncio.Task[None]


@pytest.fixture
async def theatre(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Theatre]]:
    monkeypatch.setattr(module, "_SIGNAL_SECONDS", 0.01)
    runs: list[asyncio.Task[None]] = []

    def open_(most: int = 5, steady: float = 0.0) -> Theatre:
        monkeypatch.setattr(module, "_STEADY_SECONDS", steady)
        presence, lifecycle, suspects = stage.presence, Lifecycle(), Suspects()
        engine = MortalStandIn(stage.engine, presence)
        gate = FairAdmission(Limits(4, 2, 512), stage.residency, stage.metrics)
        lifecycle.attach(Attached(StandInApp(), stage.residency, gate, stage.engine.max_sequences))
        supervisor = Supervisor(
            engine, stage.residency, gate, lifecycle, presence, suspects, most=most, window=60
        )
        runs.append(asyncio.create_task(supervisor.run()))
        return Theatre(
            stage=stage,
            engine=engine,
            gate=gate,
            lifecycle=lifecycle,
            presence=presence,
            suspects=suspects,
            supervisor=supervisor,
            run=runs[0],
        )

    yield open_
    for run in runs:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def back(theatre: Theatre) -> None:
    async with asyncio.timeout(5):
        while not (theatre.lifecycle.is_ready and theatre.presence.is_there):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_what_was_resident_is_back_before_calls_the_pinned_and_the_used_first(theatre):
    play = theatre()
    red, green = play.stage.version("red"), play.stage.version("green")
    play.stage.residency.pin([red])
    await play.stage.use(red)
    await play.stage.use(green)
    play.stage.engine.names.clear()

    play.engine.gate = asyncio.Event()
    play.engine.die()
    await asyncio.sleep(0.05)
    assert play.lifecycle.status == "restarting"
    assert not play.lifecycle.is_up
    assert play.stage.resident() == set()
    waiting = asyncio.create_task(play.stage.use(green))
    await asyncio.sleep(0.05)
    assert play.stage.engine.names == []  # nobody asks an engine that is away
    play.engine.gate.set()
    await back(play)
    assert [name.partition("#")[0] for name in play.stage.engine.names] == ["red@1", "green@1"]
    assert (await waiting).engine_name == play.stage.engine.names[1]
    assert play.supervisor.restarts == 1
    assert play.lifecycle.is_up


async def test_leases_of_the_dead_engine_are_lost_and_end_harmlessly(theatre):
    play = theatre()
    red = play.stage.version("red")
    async with play.stage.residency.lease(red, None) as old:
        play.engine.die()
        await asyncio.sleep(0.02)
        await back(play)
        assert old.lost
        async with play.stage.residency.lease(red, None) as new:
            assert not new.lost
            assert new.engine_name != old.engine_name
    assert play.stage.residency.residents[red.key].users == 0


async def test_a_load_that_the_death_ends_begins_again_with_the_next_engine(theatre):
    play = theatre()
    red = play.stage.version("red")
    play.stage.engine.gate = asyncio.Event()
    use = asyncio.create_task(play.stage.use(red))
    await asyncio.sleep(0.05)
    play.stage.engine.failures = [EngineGone("the engine ended")]
    play.engine.die()
    await asyncio.sleep(0)
    play.stage.engine.gate.set()
    adapter = await asyncio.wait_for(use, 5)
    assert [*play.stage.engine.loaded.values()] == [adapter.engine_name]
    assert adapter.engine_name in play.stage.engine.names[1:]
    assert play.stage.engine.removed == []  # what has ended holds nothing


async def test_an_adapter_that_cannot_be_restored_keeps_nobody_waiting(theatre, caplog):
    play = theatre()
    await play.stage.use(play.stage.version("red"))
    play.stage.lost = True
    play.engine.die()
    await asyncio.sleep(0)
    await back(play)
    assert "red@1 was not loaded" in caplog.text
    assert play.stage.resident() == set()


async def test_restoring_ends_after_its_time(theatre, monkeypatch, caplog):
    monkeypatch.setattr(module, "_RESTORE_SECONDS", 0.0)
    play = theatre()
    await play.stage.use(play.stage.version("red"))
    play.engine.die()
    await asyncio.sleep(0)
    await back(play)
    assert play.stage.resident() == set()
    assert "1 adapters load only when they are called" in caplog.text


async def test_restarts_that_fail_wait_longer_and_longer(theatre, monkeypatch):
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        if seconds not in (0.01, 0.001):
            pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(**vars(asyncio)))
    monkeypatch.setattr(module.asyncio, "sleep", record)
    play = theatre(most=20)
    play.engine.failures = 7
    play.engine.die()
    await sleep(0)
    await back(play)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    assert play.supervisor.restarts == 8


async def test_after_too_many_deaths_it_is_given_up_and_who_waits_is_told(theatre, caplog):
    play = theatre(most=2)
    red = play.stage.version("red")
    for _ in range(2):
        play.engine.die()
        await asyncio.sleep(0)
        await back(play)
    play.engine.gate = asyncio.Event()
    play.engine.die()
    waiting = asyncio.create_task(play.stage.use(red))
    await asyncio.wait_for(play.run, 5)
    with pytest.raises(Unavailable) as refused:
        await waiting
    assert refused.value.code == "engine_dead"
    assert play.presence.is_over
    assert not play.lifecycle.is_up
    assert play.engine.starts == 2
    assert "ended 3 times within 1 minutes" in caplog.text


async def test_deaths_from_outside_blame_no_call(theatre):
    play = theatre()
    call = SimpleNamespace(digest="d", request_id="r", response_model="base")
    for from_outside, is_refused in ((True, False), (True, False), (False, False), (False, True)):
        play.engine.die(Death("it ended", from_outside, (call,)))
        await asyncio.sleep(0)
        await back(play)
        assert ("d" in play.suspects._poison) is is_refused


async def test_an_engine_that_a_signal_to_all_has_ended_is_not_started_again(theatre):
    play = theatre()
    play.engine.die()
    play.lifecycle.advance(Phase.DRAINING)
    await asyncio.wait_for(play.run, 5)
    assert play.engine.starts == 0


async def test_a_restart_under_way_can_be_ended(theatre):
    play = theatre()
    play.engine.gate = asyncio.Event()
    play.engine.die()
    await asyncio.sleep(0.05)
    assert play.engine.starts == 1
    play.run.cancel()
    await asyncio.wait_for(play.supervisor.close(), 5)
    assert play.engine.abandoned
