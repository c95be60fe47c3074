"""What the fork server is: the modules of an engine, imported once (server/engine/forkserver.py).

Only Python's fork server imports this module. It ignores the signals that are the server's to
answer, and ends with the server: while it imports by a timer, then by multiprocessing's own pipe.
No thread, which a fork would lose.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from server import signals
from server.kernels.watchdog import ORPHANED, POLL_SECONDS, SERVER_VARIABLE
from server.telemetry.logs import follow_server

# With what they import, nearly all modules of an engine that is ready; what is missing
# it imports itself.
MODULES = (
    "typer.core",  # of `lorry`, which each child imports as its __main__
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.compilation.caching",
    "server.kernels.nf4",
    "server.kernels.staging",
)


def preload() -> None:
    signals.ignore()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOPPING)  # forkserver.py blocks them
    follow_server()
    # Nearly all that an import makes stays: looking for garbage in it takes a sixth of the time.
    gc.disable()
    with _while_the_server_lives():
        for name in MODULES:
            with suppress(ImportError):  # the engine reports it
                importlib.import_module(name)
    gc.freeze()  # children look for garbage in what they add
    gc.enable()


@contextmanager
def _while_the_server_lives() -> Iterator[None]:
    def look(number: int, frame: object) -> None:
        if os.getppid() != server:
            os._exit(ORPHANED)

    server = int(os.environ[SERVER_VARIABLE])
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, POLL_SECONDS, POLL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


preload()
