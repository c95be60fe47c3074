"""How a process of the engine has ended, and whether someone has ended it from outside.

A process that a request ends fails by itself (an exception, a crash), fills the memory until the
kernel kills it, or hangs until the server does. `kill -9` looks like the kernel's SIGKILL, but the
kernel counts its own.
"""

from __future__ import annotations

import signal
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")  # of the whole machine, in a container too
# A process that gets SIGTERM may also end in order, with 0.
_BY_SOMEONE = (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)


def count_oom_kills() -> int:
    """How many processes the kernel has killed for their memory since it was started."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def is_from_outside(exit_code: int | None, oom_kills: int) -> bool:
    """`oom_kills`: how many there were while the process lived."""
    return exit_code in _BY_SOMEONE and not oom_kills


def describe(exit_code: int | None, oom_kills: int) -> str:
    """`exit_code` as in multiprocessing: None is still running, -N was ended by signal N."""
    if exit_code is None:
        return "it failed"
    if exit_code >= 0:
        return f"its process ended with code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in {*signal.Signals} else str(-exit_code)
    memory = ", as the machine or its group ran out of memory" if oom_kills else ""
    return f"its process was ended by {name}{memory}"
