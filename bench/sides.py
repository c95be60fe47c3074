"""Starts, freezes, runs and stops sides.

A frozen side uses no processor: every process of its session is stopped. A side that was frozen
during an answer is timed from outside, as its own clock ran on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.errors import SideFailed
from bench.model import Home
from bench.spec import Outcome, SideSpec
from bench.workload import Workload
from loadtest.servers import processes
from loadtest.servers.environment import cleaned

START_SECONDS = 600.0
RUN_SECONDS = 1800.0  # stock vLLM needs minutes where a processor has no bf16
SLICE_SECONDS = 0.25  # of a race
_STOP_SECONDS = 10.0
_LINGER_SECONDS = 2.0
_ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "bench.side")
_SHOWN = 200  # characters of a side's last message


class Side:
    """One process tree; from `wait_ready` on it is frozen except inside a call."""

    def __init__(self, spec: SideSpec, home: Home, command: Sequence[str] = COMMAND) -> None:
        self.spec = spec
        self._home = home
        self._log = home.logs / f"{spec.slug}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=cleaned(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._read = b""
        self._expected: tuple[int, int] = (0, 0)  # answers, and the tokens of each
        self._turns, self._awake = 0, 0.0  # turns since `ask`, and their seconds

    @property
    def session(self) -> int:
        return self._process.pid

    def begin(self) -> None:
        """Tell it to build its engine."""
        home = {key: _plain(value) for key, value in asdict(self._home).items()}
        self._send({"spec": asdict(self.spec), "home": home})

    def wait_ready(self) -> None:
        """Raises SideFailed with the side's last message."""
        self._receive(START_SECONDS)
        self._signal(signal.SIGSTOP)

    def run(
        self, workload: Workload, seed: int, only: Sequence[int] | None = None, rivals: bool = False
    ) -> Outcome:
        """Answer the workload, or only the requests numbered in `only`.

        Raises:
            SideFailed: it died, took too long, or answered with another number of tokens.
        """
        self.ask(workload, seed, only, rivals)
        while (outcome := self.advance(RUN_SECONDS)) is None:
            pass
        return outcome

    def ask(
        self, workload: Workload, seed: int, only: Sequence[int] | None = None, rivals: bool = False
    ) -> None:
        """Send a workload, for `advance` to work on. Raises SideFailed if it is dead."""
        self._send({"workload": asdict(workload), "seed": seed, "only": only, "rivals": rivals})
        self._expected = workload.streams if only is None else len(only), workload.output_tokens
        self._turns, self._awake = 0, 0.0

    def advance(self, seconds: float) -> Outcome | None:
        """Run for `seconds`; returns the outcome, timed while awake, once all is answered.

        Raises:
            SideFailed: it died, took too long, or answered with another number of tokens.
        """
        began = time.perf_counter()
        self._signal(signal.SIGCONT)
        line = self._read_line(seconds)
        self._signal(signal.SIGSTOP)
        self._turns, self._awake = self._turns + 1, self._awake + time.perf_counter() - began
        if line is not None:
            return self._outcome(line)
        if self._awake >= RUN_SECONDS:
            raise self._silent(RUN_SECONDS)
        return None

    def _outcome(self, line: bytes) -> Outcome:
        outcome = Outcome.from_json(self._parse(line))
        count, length = self._expected
        lengths = [len(answer) for answer in outcome.tokens]
        if lengths != [length] * count:
            raise SideFailed(f"asked for {count} answers of {length} tokens, got {lengths}")
        return replace(outcome, seconds=self._awake) if self._turns > 1 else outcome

    def stop(self) -> None:
        """Let it end by itself, then kill what is left of it."""
        self._signal(signal.SIGCONT)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # unsent data has no reader any more
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        # Python's resource tracker ends last: it removes the shared memory of the others.
        deadline = time.monotonic() + _LINGER_SECONDS
        while processes.members(self.session):
            if time.monotonic() > deadline:
                processes.send(self.session, signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """To all of its processes at once: none leaves the session's process group."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.session, number)

    def _send(self, document: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps(document)}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self, seconds: float) -> dict[str, Any]:
        line = self._read_line(seconds)
        if line is None:
            raise self._silent(seconds)
        return self._parse(line)

    def _parse(self, line: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer

    def _read_line(self, seconds: float) -> bytes | None:
        """None on a timeout. Raises SideFailed when the side has ended."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            received = os.read(pipe, 1 << 16)
            if not received:
                raise self._ended()
            self._read += received
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _silent(self, seconds: float) -> SideFailed:
        return self._failed(f"no answer within {seconds:.0f} s")

    def _ended(self) -> SideFailed:
        said = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
        return self._failed(f"it ended, and said last: {last}")

    def _failed(self, what: str) -> SideFailed:
        line = " ".join(what.split())
        return SideFailed(f"{line[:_SHOWN]} (see {self._log})")


class Sides:
    """The running sides. A side that failed is not started again in the same run."""

    def __init__(self, home: Home, command: Sequence[str] = COMMAND) -> None:
        self._home = home
        self._command = command
        self._up: dict[SideSpec, Side] = {}
        self.failures: dict[SideSpec, str] = {}

    def __enter__(self) -> Sides:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:  # a second Ctrl-C must not leave frozen processes
            for side in self._up.values():
                stack.callback(side.stop)

    def sessions(self) -> list[int]:
        """The process sessions of the running sides."""
        return [side.session for side in self._up.values()]

    def start(self, specs: Collection[SideSpec]) -> None:
        """Start, at once, those neither running nor failed: most of a start uses one core."""
        new = [spec for spec in specs if spec not in self._up and spec not in self.failures]
        for spec in new:
            with self._watching(spec):
                self._up[spec] = Side(spec, self._home, self._command)
                self._up[spec].begin()
        for spec in new:
            if spec in self._up:
                with self._watching(spec):
                    self._up[spec].wait_ready()

    def run(self, spec: SideSpec, workload: Workload, seed: int, **options: Any) -> Outcome | None:
        """The outcome, or None if the side fails or has failed before."""
        if spec in self.failures:
            return None
        with self._watching(spec):
            return self._up[spec].run(workload, seed, **options)
        return None

    def race(self, works: Mapping[SideSpec, Workload], seed: int) -> dict[SideSpec, Outcome]:
        """The outcomes of the sides that did not fail; the sides run in turn, a slice each.

        So other load on the machine, which comes and goes within seconds, hits all sides alike.
        """
        racing = deque(spec for spec in works if spec not in self.failures)
        for spec in racing:
            with self._watching(spec):
                self._up[spec].ask(works[spec], seed)
        outcomes: dict[SideSpec, Outcome] = {}
        while racing:
            spec = racing.popleft()
            if spec in self.failures:
                continue
            with self._watching(spec):
                outcome = self._up[spec].advance(SLICE_SECONDS)
                if outcome is None:
                    racing.append(spec)
                else:
                    outcomes[spec] = outcome
        return outcomes

    def keep(self, wanted: Collection[SideSpec]) -> None:
        """Stop all sides but the wanted ones."""
        for spec in [spec for spec in self._up if spec not in wanted]:
            self._up.pop(spec).stop()

    @contextlib.contextmanager
    def _watching(self, spec: SideSpec) -> Iterator[None]:
        try:
            yield
        except SideFailed as error:
            self.failures[spec] = str(error)
            self._up.pop(spec).stop()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
