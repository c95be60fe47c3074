"""Actions on Lorry's admin API, and their results in the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from marked_server import marked_server, write_adapter
from running_server import RunningServer
from standin_server import TOKEN

from adapters.catalog import Catalog
from loadtest.drive.actions import Actions, Switch, check, schedule
from loadtest.errors import OptionsClash, ScenarioInvalid, ServerFailed
from loadtest.plan.scenario import Phase, Scenario
from loadtest.records import Done

PUBLISH = {"do": "publish", "adapter": 0}
POINT = {"do": "point", "adapter": 0, "version": 2}
ROLL_BACK = {"do": "rollback", "adapter": 0}
TRAFFIC = {"mixed": {"kind": "constant", "rate": 1}}


def phase(*actions: dict[str, Any], seconds: float = 60) -> Phase:
    listed = [{"at": number / 1000} | action for number, action in enumerate(actions)]
    document = {"name": "rolling", "seconds": seconds, "traffic": TRAFFIC, "actions": listed}
    return Phase.model_validate(document)


@pytest.fixture
def server(tmp_path) -> Iterator[RunningServer]:
    with marked_server(tmp_path, "orders") as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"authorization": "Bearer a caller's"}) as session:
        yield session


@pytest.fixture
def take(server, session, tmp_path):
    """Performs actions on orders, with marked versions 2 and 3."""
    for version in (2, 3):
        write_adapter(tmp_path / f"orders-{version}", seed=version)

    def folder(name: str, version: int):
        found = tmp_path / f"{name}-{version}"
        return found if found.exists() else None

    async def take(*actions: dict[str, Any], token: str = TOKEN) -> list[Done]:
        taken = Actions(session, server.url, token, ["orders"], folder)
        return await taken.run(phase(*actions), began=time.monotonic())

    return take


def results(done: list[Done]) -> list[tuple[str, str, int | None]]:
    return [(each.what, each.failure, each.stable) for each in done]


async def test_a_version_is_published_rolled_out_and_back(server, take):
    before = time.monotonic()
    done = await take(PUBLISH, POINT, ROLL_BACK)
    assert results(done) == [
        ("publish orders@2", "", None),
        ("point orders@stable at 2", "", 2),
        ("roll back orders@stable", "", 1),
    ]
    assert {(each.phase, each.adapter) for each in done} == {("rolling", "orders")}
    times = [before, *(at for each in done for at in (each.began, each.ended)), time.monotonic()]
    assert times == sorted(times)
    with Catalog.open(server.store) as catalog:
        (alias,) = catalog.list_aliases("orders")
        actions = [event.action for event in catalog.list_events("orders", 10)]
    assert [target.version for target in alias.targets] == [1]
    assert actions[-3:] == ["published", "alias_moved", "alias_rolled_back"]


async def test_repeated_publishing_fails_after_the_last_marked_version(take):
    done = await take(PUBLISH | {"every": 0.01, "times": 3})
    assert results(done) == [
        ("publish orders@2", "", None),
        ("publish orders@3", "", None),
        (
            "publish orders@4",
            "there is no marked version 4 of orders: make more of them",
            None,
        ),
    ]


async def test_pins_and_aliases_other_than_stable_do_not_move_a_bare_name(server, take):
    canary = {"do": "point", "adapter": 0, "version": 1, "alias": "canary"}
    pins = [{"do": do, "adapter": 0, "version": 1} for do in ("pin", "unpin")]
    assert results(await take(canary, *pins)) == [
        ("point orders@canary at 1", "", None),
        ("pin orders@1", "", None),
        ("unpin orders@1", "", None),
    ]
    assert [name.partition("#")[0] for name in server.engine.names] == ["orders@1"]


async def test_a_refusal_is_recorded_and_moves_nothing(take):
    missing, back = await take(POINT | {"version": 9}, ROLL_BACK)
    assert missing.failure.startswith("404 ")
    assert back.failure.startswith("4")
    assert (missing.stable, back.stable) == (None, None)
    (refused,) = await take(POINT, token="a-token-that-is-wrong")
    assert refused.failure.startswith("401 invalid_admin_token: ")
    assert TOKEN not in refused.failure


async def answered_by(answer, *actions) -> list[Done]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        taken = Actions(session, str(server.make_url("/")), TOKEN, ["orders"])
        return await taken.run(phase(*actions), began=time.monotonic())


async def abort(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def fail(request: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "so", "code": "odd"}}, status=500)


async def send_html(request: web.Request) -> web.Response:
    return web.Response(text="<html>", content_type="text/html")


@pytest.mark.parametrize(
    ("answer", "failure"),
    [(abort, "no answer: "), (fail, "500 odd: so"), (send_html, "200, and the answer is not")],
)
async def test_after_an_unclear_answer_the_move_may_have_happened(answer, failure):
    point, back = await answered_by(answer, POINT, ROLL_BACK)
    assert point.failure.startswith(failure)
    assert back.failure.startswith(failure)
    assert (point.stable, back.stable) == (2, 0)


async def test_power_is_used_and_a_failure_of_it_is_recorded(session):
    stopped = asyncio.Event()

    async def stop() -> None:
        stopped.set()

    async def start() -> None:
        raise ServerFailed("it did not come up")

    async def kill_engine() -> None:
        raise ServerFailed("it has none")

    switch = Switch(stop, start, kill_engine)
    taken = Actions(session, "http://127.0.0.1:1", None, [], switch=switch)
    actions = phase({"do": "stop-server"}, {"do": "start-server"}, {"do": "kill-engine"})
    done = await taken.run(actions, began=time.monotonic())
    assert stopped.is_set()
    assert results(done) == [
        ("stop-server", "", None),
        ("start-server", "it did not come up", None),
        ("kill-engine", "it has none", None),
    ]


async def test_an_action_runs_at_its_time_in_the_phase(take):
    began = time.monotonic()
    (done,) = await take(POINT | {"version": 1, "at": 0.2})
    assert done.began >= began + 0.2


def test_actions_are_ordered_by_time_and_end_with_the_phase():
    often = POINT | {"at": 2, "every": 2, "times": 50}
    twice = ROLL_BACK | {"at": 1, "every": 2, "times": 2}
    several = phase(often, twice, seconds=7)
    found = [(at, action.do) for at, action in schedule(several)]
    assert found == [(1, "rollback"), (2, "point"), (3, "rollback"), (4, "point"), (6, "point")]


def scenario(*actions: dict[str, Any]) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "rolling",
            "adapters": 1,
            "streams": {"mixed": {"adapters": {"count": 1}}},
            "phases": [phase(*actions)],
        }
    )


def test_a_scenario_with_everything_it_needs_is_accepted():
    check(scenario(), token=None, can_power=False, has_manifest=False)
    check(scenario({"do": "stop-server"}), token=None, can_power=True, has_manifest=False)
    check(scenario(PUBLISH, POINT), token=TOKEN, can_power=False, has_manifest=True)


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        (POINT, {"token": None}, "phase rolling has the action `point`, which needs the admin tok"),
        (POINT, {"token": ""}, "needs the admin token"),
        (PUBLISH, {"has_manifest": False}, "needs marked adapters"),
        ({"do": "start-server"}, {"can_power": False}, "which needs a server started by --serve"),
        ({"do": "kill-engine"}, {"can_power": False}, "which needs a server started by --serve"),
    ],
)
def test_a_missing_requirement_of_an_action_is_reported_before_the_start(action, given, message):
    options = {"token": TOKEN, "can_power": True, "has_manifest": True} | given
    with pytest.raises(OptionsClash, match=message):
        check(scenario(action), **options)


def test_an_action_after_its_phases_end_makes_the_scenario_invalid():
    with pytest.raises(ScenarioInvalid, match="at 60 s, but ends at 60 s"):
        check(scenario(POINT | {"at": 60}), TOKEN, True, True)
