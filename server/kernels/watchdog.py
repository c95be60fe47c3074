"""Ends an engine process whose server is gone, so that `kill -9` of the server leaves no orphan.

The server puts its process id into the environment, which its engine and workers inherit; only
those are watched over. Asks the kernel about that one process and knows nothing else of it.
Not PR_SET_PDEATHSIG: that one fires when the *thread* that started the engine ends.
"""

import os
import threading
import time

SERVER_VARIABLE = "LORRY_PARENT_PID"
POLL_SECONDS = 1.0
ORPHANED = 70
_THREAD = "lorry-watchdog"


def arm() -> bool:
    """Watch over this process if a server above it has given its id; True if it is watched."""
    server = int(os.environ.get(SERVER_VARIABLE, os.getpid()))
    if server == os.getpid():
        return False
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return True
    try:
        # Open for good: the descriptor stays with this process even if its number is given to
        # another one, and watching goes on when the engine has run out of descriptors.
        stat = os.open(f"/proc/{server}/stat", os.O_RDONLY)
    except FileNotFoundError:
        os._exit(ORPHANED)
    threading.Thread(target=_end_with_server, args=(stat,), name=_THREAD, daemon=True).start()
    return True


def _end_with_server(stat: int) -> None:
    while not _has_ended(stat):
        time.sleep(POLL_SECONDS)
    # Neither a log line nor clean-up: with the server gone, both can block for ever.
    os._exit(ORPHANED)


def _has_ended(stat: int) -> bool:
    try:
        fields = os.pread(stat, 1024, 0)
    except ProcessLookupError:
        return True
    # "PID (NAME) STATE ...". A zombie has ended, whenever its own parent may collect it.
    return fields.rpartition(b") ")[2][:1] in (b"Z", b"X")
