"""Makes the log one JSON object a line, whoever writes: a small process beside the server.

In JSON, the server's standard output and error are a pipe to it, which every child inherits: what
native libraries, an interpreter that crashes or a print() write arrives here. Lines of our own form
pass; any other becomes `{"time", "level", "event": "log", "logger": "stderr", "message"}`, a
traceback one object. A thread of the server could not report how the server crashed.

It ends when the last process that writes has ended. `python -I -S` runs this file: it may import
nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_OURS = b'{"time": "'
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What is written in several lines and ends with a pause. After any other line, what is indented
# belongs to it.
_BEGINS_BLOCK = re.compile(
    r"Traceback \(most recent|Fatal Python error|terminate called|Process \S+:$|nanobind: "
)
_IS_ERROR = re.compile(r"\b(error|critical|fatal|abort(ed)?|traceback|terminate called)\b", re.I)
_SAID_BY_US = "lorry: "
_PAUSE_SECONDS = 0.1
_BLOCK_LINES = 500
_MAX_BYTES = 1 << 20  # of a line without an end
_PER_MINUTE = 600  # objects; a library may repeat itself with every call

_process: subprocess.Popen[bytes] | None = None  # kept: one that is collected would warn


def capture() -> TextIO:
    """Send standard output and error through a new collector; returns the real standard error."""
    global _process
    from server import children  # not above: the collector runs this file, without our packages

    real = os.dup(2)
    read, write = os.pipe()
    # Blocked signals stay blocked in the child: it outlives a Ctrl-C to the whole group.
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        _process = subprocess.Popen(
            command, stdin=read, stdout=subprocess.DEVNULL, env=children.environment()
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        os.close(read)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(write)
    return os.fdopen(real, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def is_capturing() -> bool:
    """Whether `capture` has been called in this process."""
    return _process is not None


class Lines:
    """Splits what is fed into lines and gives `write` one JSON object for each."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._rest = b""
        self._block: list[str] = []
        self._is_long = False  # the block goes on until a pause
        self._minute = 0.0
        self._count = 0

    @property
    def is_open(self) -> bool:
        """Whether a block of lines waits for its end."""
        return bool(self._block)

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = re.split(rb"\r\n|\n|\r", self._rest + chunk)
        for line in lines:
            self._take(line)
        if len(self._rest) > _MAX_BYTES:
            self._take(self._rest)
            self._rest = b""

    def end(self) -> None:
        self._take(self._rest)
        self.end_block()

    def end_block(self) -> None:
        text, self._block, self._is_long = "\n".join(self._block).strip(), [], False
        if text:
            self._emit(text)

    def _take(self, line: bytes) -> None:
        if line.startswith(_OURS) and _is_object(line):
            self.end_block()
            self._write(line + b"\n")
            return
        text = _ANSI.sub("", line.decode("utf-8", "replace")).rstrip()
        if not (self._is_long or (self._block and text.startswith((" ", "\t")))):
            self.end_block()
            if not text:
                return
        self._is_long = self._is_long or bool(_BEGINS_BLOCK.search(text))
        self._block.append(text)
        if len(self._block) >= _BLOCK_LINES:
            self.end_block()

    def _emit(self, text: str) -> None:
        level = "error" if _IS_ERROR.search(text) else "warning"
        if text.startswith(_SAID_BY_US):
            level, text = "info", text.removeprefix(_SAID_BY_US)
        now = time.time()
        if now - self._minute >= 60:
            self._minute, suppressed = now, self._count - _PER_MINUTE
            self._count = 0
            if suppressed > 0:
                self._object(now, "warning", f"{suppressed} lines were suppressed")
        self._count += 1
        if self._count <= _PER_MINUTE:
            self._object(now, level, text)

    def _object(self, now: float, level: str, message: str) -> None:
        line = {
            "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": "log",
            "logger": "stderr",
            "message": message,
        }
        self._write(json.dumps(line).encode() + b"\n")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _write_all(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass  # nobody reads the log; go on reading, or the server would stand still


def main() -> None:
    lines = Lines(_write_all)
    while True:
        if lines.is_open and not select.select([0], [], [], _PAUSE_SECONDS)[0]:
            lines.end_block()
        elif chunk := os.read(0, 1 << 16):
            lines.feed(chunk)
        else:
            lines.end()
            return


if __name__ == "__main__":
    main()
