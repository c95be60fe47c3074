"""Actions on the server during a phase: each at its time, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import aiohttp
import msgspec

from loadtest.drive.admin import Admin, Alias, Answer
from loadtest.errors import LoadtestError, OptionsClash, ScenarioInvalid
from loadtest.plan.scenario import Action, Phase, Pin, Point, Power, Publish, RollBack, Scenario
from loadtest.records import Done

STABLE = "stable"
ANY = 0  # in Done.stable: an unknown version

# The folder of a marked version, by adapter and version; None: there is none.
Folder = Callable[[str, int], Path | None]


class Switch(msgspec.Struct, frozen=True):
    """Power over the server's processes; each may raise a LoadtestError."""

    stop: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]
    kill_engine: Callable[[], Awaitable[None]]  # once the server is ready


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an action, as in Done."""

    what: str
    failure: str = ""
    adapter: str = ""
    stable: int | None = None


def check(scenario: Scenario, token: str | None, can_power: bool, has_manifest: bool) -> None:
    """Check before the start that all of a scenario's actions are possible.

    Raises:
        OptionsClash: one needs the admin token, marked adapters, or a server started by the tool.
        ScenarioInvalid: an action is due after its phase's end.
    """
    for phase in scenario.phases:
        for action in phase.actions:
            where = f"phase {phase.name} has the action `{action.do}`"
            if action.at >= phase.seconds:
                raise ScenarioInvalid(
                    f"{where} at {action.at:g} s, but ends at {phase.seconds:g} s: make it longer"
                )
            if isinstance(action, Power):
                if not can_power:
                    raise OptionsClash(f"{where}, which needs a server started by --serve")
            elif not token:
                raise OptionsClash(f"{where}, which needs the admin token: set LORRY_ADMIN_TOKEN")
            if isinstance(action, Publish) and not has_manifest:
                raise OptionsClash(f"{where}, which needs marked adapters: give --markers")


class Actions:
    """`names` are the run's adapters by number; `folder` finds the versions to publish."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        token: str | None,
        names: Sequence[str],
        folder: Folder | None = None,
        switch: Switch | None = None,
    ) -> None:
        self._admin = Admin(session, url, token or "")
        self._names = names
        self._folder = folder
        self._switch = switch

    async def run(self, phase: Phase, began: float) -> list[Done]:
        """Perform a phase's actions; those due after its end are skipped, refusals are recorded.

        Args:
            began: the phase's begin, seconds of CLOCK_MONOTONIC.
        """
        done = []
        for at, action in schedule(phase):
            await asyncio.sleep(max(began + at - time.monotonic(), 0.0))
            started = time.monotonic()
            effect = await self._perform(action)
            done.append(
                Done(
                    phase=phase.name,
                    began=started,
                    ended=time.monotonic(),
                    **msgspec.structs.asdict(effect),
                )
            )
        return done

    async def _perform(self, action: Action) -> Effect:
        match action:
            case Power():
                return await self._power(action)
            case Publish():
                return await self._publish(self._names[action.adapter])
            case Point():
                return await self._point(action, self._names[action.adapter])
            case RollBack():
                return await self._roll_back(action, self._names[action.adapter])
            case Pin():
                return await self._pin(action, self._names[action.adapter])

    async def _power(self, action: Power) -> Effect:
        assert self._switch is not None, "check() was not called"
        changes = {
            "stop-server": self._switch.stop,
            "start-server": self._switch.start,
            "kill-engine": self._switch.kill_engine,
        }
        try:
            await changes[action.do]()
        except LoadtestError as error:
            return Effect(what=action.do, failure=str(error))
        return Effect(what=action.do)

    async def _publish(self, name: str) -> Effect:
        """Publish the version after the server's newest; the manifest must have a marker for it."""
        shown = await self._admin.show(name)
        if shown.result is None:
            return Effect(what=f"publish {name}", failure=shown.failure, adapter=name)
        version = max((each.version for each in shown.result.versions), default=0) + 1
        return Effect(
            what=f"publish {name}@{version}",
            failure=await self._upload(name, version),
            adapter=name,
        )

    async def _upload(self, name: str, version: int) -> str:
        """Publish this version; returns the failure, or an empty string."""
        folder = self._folder(name, version) if self._folder else None
        if folder is None:
            return f"there is no marked version {version} of {name}: make more of them"
        answer = await self._admin.publish(name, folder)
        if answer.result is None or answer.result.version == version:
            return answer.failure
        return f"the server made it version {answer.result.version}, which has another marker"

    async def _point(self, action: Point, name: str) -> Effect:
        answer = await self._admin.point(name, action.alias, action.version)
        what = f"point {name}@{action.alias} at {action.version}"
        return _moved(what, name, action.alias, answer, action.version)

    async def _roll_back(self, action: RollBack, name: str) -> Effect:
        answer = await self._admin.roll_back(name, action.alias)
        return _moved(f"roll back {name}@{action.alias}", name, action.alias, answer, ANY)

    async def _pin(self, action: Pin, name: str) -> Effect:
        change = self._admin.pin if action.do == "pin" else self._admin.unpin
        answer = await change(name, action.version)
        what = f"{action.do} {name}@{action.version}"
        return Effect(what=what, failure=answer.failure, adapter=name)


def schedule(phase: Phase) -> Iterator[tuple[float, Action]]:
    """(seconds into the phase, action) of all actions due before its end, ordered by time."""
    times = [
        (action.at + turn * (action.every or 0.0), action)
        for action in phase.actions
        for turn in range(action.times)
    ]
    due = [each for each in times if each[0] < phase.seconds]
    yield from sorted(due, key=lambda each: each[0])


def _moved(what: str, name: str, alias: str, answer: Answer[Alias], meant: int) -> Effect:
    """`meant`: the version that the alias points at if an unclear answer hides a success."""
    stable: int | None = meant
    if answer.result is not None:
        versions = [target.version for target in answer.result.targets]
        stable = versions[0] if len(versions) == 1 else ANY
    elif not answer.unclear:
        stable = None
    return Effect(
        what=what,
        failure=answer.failure,
        adapter=name,
        stable=stable if alias == STABLE else None,
    )
