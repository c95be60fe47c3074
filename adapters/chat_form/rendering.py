"""Renders chat templates of adapters in the process of adapters/chat_form/worker.py.

Blocking, for threads. A form's child stays for its next calls; of several forms, the least recently
used ones are closed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

MAX_CHARACTERS = 32 * 1024 * 1024  # of one prompt
_WORKER = Path(__file__).with_name("worker.py")  # imports nothing of this package
_OPEN = 16  # children at once, of 5 MB each
_START_SECONDS = 60.0  # of the process, on a busy machine
_WALL_SECONDS = 15.0  # of one rendering, whose processor time has a limit of its own
# What Python needs to start, and the time zone of `strftime_now`: no tokens, no passwords.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")
_MET_LIMIT = b"\x01"  # as in worker.py
_TOO_MUCH = "it met the limit of time or memory of a chat template"


class TemplateFailed(Exception):
    """The template refused the messages, or is no template; says why."""


class TemplateTooComplex(TemplateFailed):
    """It met a limit of time or memory: its child was ended for it, not by the machine."""


class TemplatesUnavailable(OSError):
    """The process does not start or answer."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a form's templates use; `parts`: a message's content as a list of parts."""

    variables: tuple[str, ...]
    parts: bool


class Renderer:
    """The process and its children, one for each form. Any number of threads may use it.

    `most` bounds the characters of a prompt: all threads of this process wait while one is read.
    """

    def __init__(self, most: int = MAX_CHARACTERS) -> None:
        self._most = min(most, MAX_CHARACTERS)
        self._lock = Lock()
        self._children: OrderedDict[str, _Child] = OrderedDict()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def describe(self, key: str, templates: Mapping[str, str]) -> Described:
        """Compile the templates of a form; `key` identifies it.

        Raises TemplateFailed, or TemplatesUnavailable.
        """
        while True:
            try:
                return self._child(key, templates).describe()
            except _Retired:
                continue

    def render(
        self, key: str, templates: Mapping[str, str], name: str, context: Mapping[str, Any]
    ) -> str:
        """The prompt; raises TemplateFailed or TemplatesUnavailable."""
        while True:
            child = self._child(key, templates)
            try:
                child.describe()
                return child.render(name, context, self._most)
            except _Retired:
                continue  # for others, since it was found: another is forked

    def close(self) -> None:
        """End the process and its children."""
        with self._lock:
            for child in self._children.values():
                child.retire()
            self._children.clear()
            self._end_process()

    def _child(self, key: str, templates: Mapping[str, str]) -> _Child:
        with self._lock:
            child = self._children.get(key)
            if child is None or child.is_gone:
                child = self._children[key] = _Child(self._fork(), templates)
            self._children.move_to_end(key)
            while len(self._children) > _OPEN:
                self._children.popitem(last=False)[1].retire()
            return child

    def _fork(self) -> socket.socket:
        """A new child of the process, at the other end; raises TemplatesUnavailable."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._hand_over(theirs)
        except OSError:
            ours.close()
            raise TemplatesUnavailable("the process does not start") from None
        ours.settimeout(_WALL_SECONDS)
        return ours

    def _hand_over(self, theirs: socket.socket) -> None:
        try:
            socket.send_fds(self._ready(), [b"1"], [theirs.fileno()])
        except OSError:  # it has ended: another is started
            self._end_process()
            socket.send_fds(self._ready(), [b"1"], [theirs.fileno()])

    def _ready(self) -> socket.socket:
        if self._control is None or self._process is None or self._process.poll() is not None:
            self._end_process()
            self._process, self._control = _launch()
        return self._control

    def _end_process(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None


class _Retired(Exception):
    """The child was closed to make room."""


class _Child:
    """One form's child, which one thread uses at a time."""

    def __init__(self, own: socket.socket, templates: Mapping[str, str]) -> None:
        self.is_gone = False
        self._own = own
        self._lines = own.makefile("rb")
        self._templates = templates
        self._lock = Lock()
        self._pid = 0
        self._is_retired = False
        self._answer: dict[str, Any] | None = None

    def describe(self) -> Described:
        """What the templates use; compiled when this is asked first."""
        with self._lock:
            if self._answer is None:
                self._answer = self._ask(self._templates)
            answer = self._answer
        if "problem" in answer:
            raise TemplateFailed(answer["problem"])
        return Described(tuple(answer["variables"]), answer["parts"])

    def render(self, name: str, context: Mapping[str, Any], most: int) -> str:
        with self._lock:
            try:
                answer = self._ask([name, context, most])
            finally:
                if self._is_retired:
                    self._end()
        if "problem" in answer:
            raise TemplateFailed(answer["problem"])
        return str(answer["text"])

    def retire(self) -> None:
        """Close it, once it is not used."""
        self._is_retired = True
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _ask(self, asked: object) -> dict[str, Any]:
        text = json.dumps(asked).encode() + b"\n"  # a TypeError is the caller's
        if self.is_gone:
            raise _Retired
        line, pid = b"", 0
        try:
            pid = self._pid = self._pid or _read_pid(self._lines.read(4))
            self._own.sendall(text)
        except TimeoutError:
            self._kill(pid)
        except OSError:
            pass  # it has ended: what the worker says of it can be read
        try:
            line = self._lines.readline() if pid else b""
        except TimeoutError:
            self._kill(pid)
        except OSError:
            pass
        if not line.endswith(b"\n"):
            self._end()
            if line.endswith(_MET_LIMIT):
                raise TemplateTooComplex(_TOO_MUCH)
            raise TemplatesUnavailable("the process of the template has ended, or does not answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """Close its socket: it ends by itself."""
        self.is_gone = True
        with suppress(OSError):
            self._lines.close()
            self._own.close()


def _read_pid(said: bytes) -> int:
    """0 if the child has ended before it said it, or was never forked."""
    return int.from_bytes(said, "big") if len(said) == 4 else 0


def _launch() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
    ours.settimeout(_START_SECONDS)
    try:
        started = ours.recv(1) == b"1"
    except OSError:
        started = False
    if not started:
        ours.close()
        process.kill()
        process.wait()
        raise TemplatesUnavailable("the process does not start")
    return process, ours
