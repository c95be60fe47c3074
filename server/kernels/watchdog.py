"""Ends a process whose parent is gone, so that `kill -9` of the parent leaves no orphan.

The server puts its process id into the environment, which its engine and workers inherit; only they
watch it. What started the server itself may do the same, by another variable (cluster/). The
watchdog reads the state of that one process and knows nothing else of it.
Not PR_SET_PDEATHSIG: it fires when the *thread* that started the engine ends.
"""

import os
import threading
import time

SERVER_VARIABLE = "LORRY_PARENT_PID"
SUPERVISOR_VARIABLE = "LORRY_SUPERVISOR_PID"
POLL_SECONDS = 1.0
ORPHANED = 70
_THREAD = "lorry-watchdog"


def arm(variable: str = SERVER_VARIABLE) -> bool:
    """Watch the process whose id is in the environment, if any; returns whether there is one."""
    server = int(os.environ.get(variable, os.getpid()))
    if server == os.getpid():
        return False
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return True
    try:
        # Open for good: the descriptor refers to that process even if another one gets its id, and
        # watching goes on when the engine has run out of descriptors.
        stat = os.open(f"/proc/{server}/stat", os.O_RDONLY)
    except FileNotFoundError:
        os._exit(ORPHANED)
    threading.Thread(target=_end_with_server, args=(stat,), name=_THREAD, daemon=True).start()
    return True


def _end_with_server(stat: int) -> None:
    while not _has_ended(stat):
        time.sleep(POLL_SECONDS)
    # No log line, no clean-up: without the server both can block forever.
    os._exit(ORPHANED)


def _has_ended(stat: int) -> bool:
    try:
        fields = os.pread(stat, 1024, 0)
    except ProcessLookupError:
        return True
    # "PID (NAME) STATE ...". A zombie has ended, even if its parent has not collected it.
    return fields.rpartition(b") ")[2][:1] in (b"Z", b"X")
