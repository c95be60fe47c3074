"""Checks grammars in the process of server/grammars/process.py: fairly, once each, within limits.

Callers take turns: a caller with many grammars waits behind its own. A grammar that several calls
wait for is compiled once, when the first of their turns comes; when the last of them leaves, its
child is ended. Results are remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, field

from server import children
from server.errors import GrammarRefused, GrammarTooComplex, InvalidRequest, Unavailable
from server.grammars.bounds import Grammar
from server.grammars.process import Start, Verdict
from server.turns import Turns

logger = logging.getLogger("lorry.grammars")

_REMEMBERED = 1024
_REMEMBERED_BYTES = 16 * 1024 * 1024
_START_SECONDS = 60.0  # imports of the library, on a busy machine
_WALL_SECONDS = 20.0  # of one compilation, whose processor time has a limit of its own
_MAX_PROBLEM_CHARACTERS = 500


@dataclass(slots=True)
class _Check:
    """One compilation, and those who wait for it: so many calls, and their callers' turns."""

    result: asyncio.Future[Verdict | InvalidRequest]
    calls: int = 0
    turns: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by caller
    host: str | None = None  # the caller whose turn came first: it is compiled in that


class GrammarChecks:
    """`start` returns what the process is told; it runs in a thread, when the process starts.

    `places` is how many grammars are compiled at once.
    """

    def __init__(self, start: Callable[[], Start], places: int = 2) -> None:
        self._start = start
        self._turns = Turns(places, code="grammars_busy")
        self._checks: dict[str, _Check] = {}
        self._known: OrderedDict[str, tuple[Verdict | InvalidRequest, int]] = OrderedDict()
        self._known_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._launching: asyncio.Task[socket.socket] | None = None

    @property
    def waiting(self) -> int:
        """How many grammars wait to be compiled."""
        return self._turns.waiting

    async def check(self, grammar: Grammar, caller: str) -> Grammar:
        """The grammar as the engine shall compile it.

        Raises:
            GrammarRefused: the library does not take it.
            GrammarTooComplex: it met a limit of time or memory, or crashed the library.
            Unavailable: too many grammars wait, or the process does not answer.
        """
        digest = hashlib.sha256(f"{grammar.kind}\0{grammar.text}".encode()).hexdigest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return _taken(self._known[digest][0])
        check = self._checks.get(digest)
        if check is None:
            check = self._checks[digest] = _Check(asyncio.get_running_loop().create_future())
        if check.host is None and caller not in check.turns:
            turn = self._take_turn(check, digest, grammar, caller)
            check.turns[caller] = asyncio.create_task(turn)
        check.calls += 1
        try:
            return _taken(await asyncio.shield(check.result))
        finally:
            check.calls -= 1
            if not check.calls:
                self._end(digest, check)

    async def warm_up(self) -> None:
        """Start the process before the first grammar comes."""
        try:
            await self._ready()
        except (OSError, Unavailable) as error:
            logger.error("the grammar process did not start: %s", error)

    def close(self) -> None:
        """End the process; its children end by their limits."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def _take_turn(self, check: _Check, digest: str, grammar: Grammar, caller: str) -> None:
        """Wait for a caller's turn, and compile unless another's came first."""
        try:
            async with self._turns.take(caller):
                if check.host is not None:
                    return
                check.host = caller
                result = await self._compile(grammar)
        except Unavailable as error:
            del check.turns[caller]
            if check.host != caller and (check.host is not None or check.turns):
                return  # another's turn has come, or may come
            check.result.set_exception(error)
        except Exception:
            logger.exception("a grammar could not be checked")
            check.result.set_exception(_unanswered())
        else:
            self._remember(digest, result)
            check.result.set_result(result)
        self._end(digest, check)

    def _end(self, digest: str, check: _Check) -> None:
        """No further call shall join this check, nor wait for its turn for it."""
        if self._checks.get(digest) is check:
            del self._checks[digest]
        for turn in check.turns.values():
            if turn is not asyncio.current_task():
                turn.cancel()

    def _remember(self, digest: str, result: Verdict | InvalidRequest) -> None:
        size = len(result.text) if isinstance(result, Verdict) else 0
        self._known[digest] = result, size
        self._known_bytes += size
        while len(self._known) > _REMEMBERED or self._known_bytes > _REMEMBERED_BYTES:
            _, (_, gone) = self._known.popitem(last=False)
            self._known_bytes -= gone

    async def _compile(self, grammar: Grammar) -> Verdict | InvalidRequest:
        reader, writer = await self._connect()
        pid = 0
        try:
            async with asyncio.timeout(_WALL_SECONDS):
                pid = int.from_bytes(await reader.readexactly(4), "big")
                writer.write(json.dumps([grammar.kind, grammar.text]).encode())
                writer.write_eof()
                answer = await reader.read(-1)
            pid = 0  # it has ended by itself
        except TimeoutError:
            raise _unanswered() from None
        except asyncio.IncompleteReadError:
            raise _unanswered() from None  # no child has begun: the process has ended
        except ConnectionError:
            answer, pid = b"", 0
        finally:
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            writer.close()
        return _read_answer(answer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new child of the process, at the other end."""
        control = await self._ready()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(control, [b"1"], [theirs.fileno()])
            return await asyncio.open_connection(sock=ours)
        except OSError:
            self.close()  # it has ended: the next grammar starts another
            ours.close()
            raise

    async def _ready(self) -> socket.socket:
        """The control socket of a running process."""
        if self._control is not None and self._process is not None:
            if self._process.poll() is None:
                return self._control
            status = self._process.returncode
            logger.error("the grammar process ended with %d: it is started again", status)
            self.close()
        if self._launching is None:
            # A task of its own: the caller that waits for it may leave.
            self._launching = asyncio.create_task(self._launch())
            self._launching.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._launching)

    async def _launch(self) -> socket.socket:
        try:
            self._process, control = await asyncio.to_thread(_launch, self._start)
        finally:
            self._launching = None
        self._control = control
        return control


def _launch(describe: Callable[[], Start]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    start = describe()
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.grammars.process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=children.environment() | _ENVIRONMENT,
        )
    try:
        _greet(ours, start)
    except Unavailable:
        ours.close()
        process.kill()
        process.wait()
        raise
    return process, ours


# One thread only: a fork takes no other one along.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def _greet(control: socket.socket, start: Start) -> None:
    control.settimeout(_START_SECONDS)
    try:
        control.sendall(json.dumps(asdict(start)).encode() + b"\n")
        if control.recv(1) != b"1":
            raise _unanswered()
    except OSError:
        raise _unanswered() from None
    control.settimeout(None)


def _read_answer(answer: bytes) -> Verdict | InvalidRequest:
    if not answer:
        return GrammarTooComplex(
            "The grammar is too complex: compiling it met the limit of time or memory of this "
            "server (max_grammar_seconds, max_grammar_mib), or crashed the library. Simplify it."
        )
    verdict = Verdict(*json.loads(answer))
    if verdict.problem:
        shown = " ".join(verdict.problem.split())[:_MAX_PROBLEM_CHARACTERS]
        return GrammarRefused(f"The grammar can't be used: {shown}.")
    return verdict


def _taken(result: Verdict | InvalidRequest) -> Grammar:
    if isinstance(result, Verdict):
        return Grammar(result.kind, result.text)  # type: ignore[arg-type]
    raise copy(result)  # a traceback on the one that is remembered would keep its call in memory


def _unanswered() -> Unavailable:
    return Unavailable(
        "The grammar could not be checked in time.", code="grammars_busy", retry_after=2
    )
