"""What signals do to `lorry serve`, from its first instruction to its last.

SIGTERM, SIGHUP (a closed terminal) and SIGINT (Ctrl-C) let running answers finish, up to a limit,
and the exit code is 0. SIGINT while the server stops ends it at once, with 130; the others change
nothing then. A SIGHUP that is ignored from the beginning (nohup) stays ignored.

Imports nothing slow: `lorry` installs the handlers before all other imports. One handler stays for
good, and only what it does changes: asyncio's would be absent before its loop runs and after.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

INTERRUPTED_EXIT_CODE = 130
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_begin: Callable[[], None] | None = None  # begins to stop; None: there is nothing to let finish
_has_begun = False


def install() -> None:
    """Handle the signals: until `on_stop`, each ends the process at once, with 0. Idempotent."""
    for number in STOPPING:
        nohup = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, signal.SIG_IGN if nohup else _handle)


def on_stop(begin: Callable[[], None]) -> None:
    """Have the first signal call `begin`, in the main thread between any two instructions."""
    global _begin
    install()
    _begin = begin


def ignore() -> None:
    """For a process that ends anyway (Python's own end takes a second), or only with its server."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def leave_to_server() -> None:
    """In a process of the engine: a terminal signals the whole group, the server decides.

    vLLM replaces the handlers of SIGTERM and SIGINT when its engine is there; until then the
    watchdog ends the process after the server.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    global _has_begun
    if _begin is None:
        os._exit(0)
    if not _has_begun:
        _has_begun = True
        _begin()
    elif number == signal.SIGINT:
        with suppress(OSError):  # no buffer, no lock: this may interrupt a write
            os.write(2, b"lorry: stopped at once\n")
        os._exit(INTERRUPTED_EXIT_CODE)
