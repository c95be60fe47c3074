"""A session of processes: its members, their memory, and signals to all of them.

Reads /proc only. An engine may have child processes; all share its server's session.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_PROC = Path("/proc")


def members(session: int) -> list[int]:
    """Process ids of the session, without zombies, which hold nothing."""
    found = []
    for stat in _PROC.glob("[0-9]*/stat"):
        # "PID (NAME) STATE PPID PGRP SESSION ..."; a name may contain anything.
        fields = _read(stat).rpartition(")")[2].split()
        if fields and fields[0] not in "ZX" and int(fields[3]) == session:
            found.append(int(stat.parent.name))
    return sorted(found)


def titled(session: int, title: str) -> list[int]:
    """The session's processes whose command line, or title in its place, begins with `title`."""
    return [p for p in members(session) if _read(_PROC / str(p) / "cmdline").startswith(title)]


def send(session: int, number: signal.Signals) -> None:
    for pid in members(session):
        kill(pid, number)


def kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def peak_bytes(session: int) -> int:
    """Sum of the processes' peak resident sizes; shared pages count each time."""
    return sum(_kib(_PROC / str(pid) / "status", "VmHWM:") for pid in members(session)) * 1024


def held_bytes(session: int) -> int:
    """Memory held now, each shared page counted once (PSS)."""
    return sum(_kib(_PROC / str(pid) / "smaps_rollup", "Pss:") for pid in members(session)) * 1024


def _kib(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process ended
        return ""
