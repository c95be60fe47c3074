"""A session of processes: who is in it, what memory they hold, and signals to all of them.

Reads /proc only. A side's engine may have children of its own; all share the side's session.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_PROC = Path("/proc")


def members(session: int) -> list[int]:
    """Living processes of the session; a zombie holds nothing and is not one."""
    found = []
    for stat in _PROC.glob("[0-9]*/stat"):
        # "PID (NAME) STATE PPID PGRP SESSION ..."; a name may hold anything.
        fields = _read(stat).rpartition(")")[2].split()
        if fields and fields[0] not in "ZX" and int(fields[3]) == session:
            found.append(int(stat.parent.name))
    return sorted(found)


def send(session: int, number: signal.Signals) -> None:
    for pid in members(session):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(pid, number)


def peak_bytes(session: int) -> int:
    """The sum of each process's largest resident size so far; what is shared counts each time."""
    return sum(_kib(_PROC / str(pid) / "status", "VmHWM:") for pid in members(session)) * 1024


def held_bytes(session: int) -> int:
    """What they hold now, each shared page counted once (PSS)."""
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
