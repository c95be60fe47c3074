"""A run: the server, the watcher, all kinds of cases in turn and together, and the record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from admin_client import TOKEN, AdminClient
from server_process import ROOT, ServerProcess
from shop import BASE_NAME, KEPT, Shop

from tests.fuzz import bodies, callers, grammars
from tests.fuzz.case import Case
from tests.fuzz.drive import Outcome, play
from tests.fuzz.judge import faults, is_checked, known
from tests.fuzz.ordinary import Ordinary, known_answers
from tests.fuzz.schema_hooks import BAIT
from tests.fuzz.verdict import LIVEZ_SECONDS, Record, livez
from tests.fuzz.watch import sample

Make = Callable[[int, int], Case]
MAKERS: dict[str, Make] = {each.KIND: each.make for each in (bodies, grammars, callers)}
_WORKERS = {bodies.KIND: 4, grammars.KIND: 8, callers.KIND: 12}
_SHARES = {bodies.KIND: 0.35, grammars.KIND: 0.35, callers.KIND: 0.15}  # of a round; then together
_ROUND_SECONDS = 48
_SETTLE_SECONDS = 8
_REPETITIONS = 3
_MOST_STALLS = 6  # that are repeated, the longest first
_MOST_SUSPECTS = 24


@dataclass(frozen=True)
class Played:
    """A case that was played, and when; bodies are too large to be kept."""

    began: float
    ended: float
    name: str
    title: str
    case: Case | None = None  # of schemathesis, if it was conspicuous

    def make(self, seed: int) -> Case | None:
        kind, _, number = self.name.partition(":")
        return MAKERS[kind](seed, int(number)) if kind in MAKERS else self.case


class Run:
    """`out` gets the server's log, the watcher's lines and the cases that failed."""

    def __init__(self, seconds: int, seed: int, out: Path, shop: Shop) -> None:
        self._seconds = seconds
        self._seed = seed
        self._out = out
        self._shop = shop
        for left in out.glob("*.json*"):  # of an earlier run
            left.unlink()
        self._server = start(shop, out)
        self._numbers: Counter[str] = Counter()
        self._cases: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        self._checked = 0
        self._faults: list[dict[str, str]] = []
        self._played: list[Played] = []
        self._rounds: list[tuple[float, float]] = []

    async def run(self) -> Record:
        server = self._server
        try:
            await asyncio.to_thread(server.wait_ready)
            await asyncio.to_thread(_publish_bait, server, self._shop)
            async with httpx2.AsyncClient(base_url=server.url) as client:
                ordinary = Ordinary(client, await known_answers(client, self._shop))
                with self._watching():
                    return await self._measure(ordinary)
        finally:
            server.kill()

    async def _measure(self, ordinary: Ordinary) -> Record:
        before = sample(self._server.process.pid)
        asking = asyncio.create_task(ordinary.ask_on())
        deadline = time.monotonic() + self._seconds
        for kind, share in (("schema", 0.12), ("schema-no-token", 0.08)):
            await self._schemathesis(kind, max(int(self._seconds * share), 4))
        while (left := deadline - time.monotonic()) > 2 and self._is_alive():
            await self._round(min(left, max(_ROUND_SECONDS, self._seconds / 10)))
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await asyncio.sleep(_SETTLE_SECONDS)
        after = sample(self._server.process.pid)
        for each in ordinary.known:
            await ordinary.ask(each)
        probes = self._watched("took")
        return {
            "seed": self._seed,
            "seconds": self._seconds,
            "cases": dict(self._cases),
            "statuses": dict(self._statuses),
            "checked": self._checked,
            "faults": self._faults,
            "known": dict(self._known),
            "livez": livez(probes),
            "stalls": await self._stalls(probes),
            "memory_mib": self._growth(),
            "descriptors": _pairs(before, after, "descriptors"),
            "threads": _pairs(before, after, "threads"),
            "ended": self._ended(before),
            "ordinary": {
                "calls": ordinary.calls,
                "refused": ordinary.refused,
                "longest": round(ordinary.longest, 2),
                "wrong": ordinary.wrong,
            },
        }

    # Cases

    async def _round(self, seconds: float) -> None:
        began = time.monotonic()
        for kind, share in _SHARES.items():
            await self._for(seconds * share, [kind])
        await self._for(seconds * (1 - sum(_SHARES.values())), list(_SHARES))
        self._rounds.append((began, time.monotonic()))

    async def _for(self, seconds: float, kinds: Iterable[str]) -> None:
        deadline = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for kind in kinds:
                for _ in range(_WORKERS[kind]):
                    tasks.create_task(self._work(kind, deadline))

    async def _work(self, kind: str, deadline: float) -> None:
        while time.monotonic() < deadline and self._is_alive():
            number = self._numbers[kind]
            self._numbers[kind] += 1
            case = MAKERS[kind](self._seed, number)
            self._take(await play(case, self._server.port))

    def _take(self, outcome: Outcome) -> None:
        case = outcome.case
        self._cases[case.kind] += 1
        self._statuses.update(str(answer.status) for answer in outcome.complete)
        self._played.append(Played(outcome.began, outcome.ended, case.name, case.title))
        self._checked += is_checked(outcome)
        for fault in faults(outcome):
            self._fail(case, fault)

    def _fail(self, case: Case, fault: str) -> None:
        if name := known(case.title, fault):
            self._known[name] += 1
            return
        file = self._out / f"{case.name.replace(':', '-')}.json"
        file.write_text(case.to_json())
        self._faults.append(
            {"name": case.name, "title": case.title, "fault": fault, "file": str(file)}
        )
        sys.stderr.write(f"{case.name} ({file}): {case.title[:100]}: {fault[:400]}\n")

    async def _schemathesis(self, kind: str, seconds: int) -> None:
        journal = self._out / f"{kind}.jsonl"
        token = [] if "no-token" in kind else ["--header", f"Authorization: Bearer {TOKEN}"]
        command = [
            *(str(Path(sys.executable).with_name("st")), "run", f"{self._server.url}/openapi.json"),
            *("--seed", str(self._seed), "--max-time", str(seconds), "--checks", "lorry_answer"),
            *("--no-shrink", "--generation-database", "none", "--suppress-health-check", "all"),
            *("--request-timeout", "60", "--continue-on-failure", "--no-color", *token),
            # A key would shut the server for the other callers: test_schema.py has them.
            *("--exclude-path-regex", "^/admin/keys"),
        ]
        environment = {
            "SCHEMATHESIS_HOOKS": "tests.fuzz.schema_hooks",
            "LORRY_FUZZ_JOURNAL": str(journal),
            "LORRY_FUZZ_SEED": str(self._seed),
            "LORRY_FUZZ_KIND": kind,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/fixtures'}",
        }
        with (self._out / f"{kind}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=self._out, env=os.environ | environment, stdout=log, stderr=log
            )
            try:
                await asyncio.wait_for(process.wait(), seconds + 90)
            except TimeoutError:
                process.kill()
        for line in journal.read_text().splitlines() if journal.exists() else ():
            self._take_line(kind, json.loads(line))

    def _take_line(self, kind: str, line: dict[str, Any]) -> None:
        case = Case.from_json(json.dumps(line["case"])) if line["case"] else None
        self._cases[kind] += 1
        self._statuses[str(line["status"])] += 1
        played = Played(line["began"], line["ended"], line["name"], line["title"], case)
        self._played.append(played)
        for fault in line["faults"] if case else ():
            self._fail(case, fault)  # type: ignore[arg-type]

    # What was seen

    @contextlib.contextmanager
    def _watching(self) -> Any:
        pid = self._server.process.pid
        command = [
            "-m",
            "tests.fuzz.watch",
            str(self._server.port),
            str(pid),
            str(self._watch_file),
        ]
        watcher = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdin=subprocess.PIPE)
        try:
            yield
        finally:
            assert watcher.stdin is not None
            watcher.stdin.close()
            watcher.wait(timeout=90)

    @property
    def _watch_file(self) -> Path:
        return self._out / "watch.jsonl"

    def _watched(self, key: str) -> list[dict[str, Any]]:
        lines = self._watch_file.read_text().splitlines()[:-1]  # the last may be half written
        return [line for line in map(json.loads, lines) if key in line]

    def _is_alive(self) -> bool:
        return self._server.process.poll() is None

    def _ended(self, before: dict[str, dict[str, int]]) -> list[str]:
        """Server or engine, if it is not that of the start; the grammar process, if it is gone."""
        now = {name: held["pid"] for name, held in sample(self._server.process.pid).items()}
        lost = [name for name in ("server", "engine") if before[name]["pid"] != now.get(name)]
        return lost if "grammars" in now else [*lost, "grammars"]

    def _growth(self) -> dict[str, list[int]]:
        """Medians of the second round and the last, if there are enough rounds to tell."""
        if len(self._rounds) < 4:
            return {}
        found = {}
        for name in ("server", "engine", "grammars"):
            found[name] = [
                int(
                    median(
                        each["held"][name]["mib"]
                        for each in self._watched("held")
                        if began <= each["at"] <= ended and name in each["held"]
                    )
                )
                for began, ended in (self._rounds[1], self._rounds[-1])
            ]
        return found

    async def _stalls(self, probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The longest waits for /livez, what ran then, and whether they repeat."""
        long = sorted((p for p in probes if p["took"] > LIVEZ_SECONDS), key=lambda p: -p["took"])
        found = []
        for probe in long[:_MOST_STALLS]:
            began, ended = probe["at"], probe["at"] + probe["took"]
            suspects = [p for p in self._played if p.began < ended and p.ended > began]
            suspects.sort(key=lambda played: played.ended - played.began)
            made = (played.make(self._seed) for played in suspects[:_MOST_SUSPECTS])
            cases = [case for case in made if case is not None]
            guilty, worst = await self._repeat(cases)
            shown = guilty or (cases[0] if cases else None)
            if guilty is not None:
                (self._out / f"stall-{guilty.name.replace(':', '-')}.json").write_text(
                    guilty.to_json()
                )
            found.append(
                {
                    "seconds": probe["took"],
                    "no_core": probe["no_core"],
                    "confirmed": guilty is not None,
                    "repeated": worst,
                    "name": shown.name if shown else "-",
                    "title": shown.title if shown else "-",
                    "suspects": [case.name for case in cases],
                }
            )
        return found

    async def _repeat(self, cases: list[Case]) -> tuple[Case | None, float]:
        """The case beside which /livez waits each time it is sent alone."""
        worst = 0.0
        for case in cases:
            waits = []
            for _ in range(_REPETITIONS):
                began = time.monotonic()
                await play(case, self._server.port)
                await asyncio.sleep(0.3)
                taken = (p["took"] for p in self._watched("took") if p["at"] + p["took"] > began)
                waits.append(max(taken, default=0.0))
                if waits[-1] <= LIVEZ_SECONDS:
                    break
            worst = max(worst, min(waits))
            if min(waits) > LIVEZ_SECONDS:
                return case, worst
        return None, worst


def start(shop: Shop, out: Path) -> ServerProcess:
    return ServerProcess(
        shop.base,
        shop.store,
        out / "server.log",
        *("--served-model-name", BASE_NAME, "--max-loras", "3", "--max-cpu-loras", "4"),
        *("--kv-cache-gib", "0.25"),  # so small that it is soon filled: its pages count as memory
        *("--", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        # A model this small may fill a schema with white space up to max_tokens.
        *("--structured-outputs-config.disable_any_whitespace", "true"),
        env={"LORRY_ADMIN_TOKEN": TOKEN},
    )


def _publish_bait(server: ServerProcess, shop: Shop) -> None:
    with AdminClient(server.url, shop.store) as admin:
        admin.upload(BAIT, KEPT / "orders-sql")


def _pairs(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], key: str
) -> dict[str, list[int]]:
    return {name: [before[name][key], after[name][key]] for name in before if name in after}
