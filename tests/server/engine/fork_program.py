"""A server that forks off its fork server; what it sees is written as JSON, a line each.

A program: a process has one fork server for good. `python fork_program.py PRELOAD` preloads that
module and then does what each line of its input names.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from server.engine import forkserver as ours
from server.kernels.watchdog import SERVER_VARIABLE

SECRET = "s3cret-of-the-bucket"


def look(sender: connection.Connection) -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    sender.send([os.getppid(), threads, os.environ.get("SET_LATE"), os.environ.get("SET_EARLY")])


def fork() -> Any:
    receiver, sender = connection.Pipe(duplex=False)
    child = ours.ForkedProcess(target=look, args=(sender,))
    child.start()
    sender.close()
    seen = receiver.recv()
    child.join()
    return [*seen, child.exitcode]


def refuse() -> str:
    def fail() -> None:
        raise ValueError("not this one")

    try:
        ours.run_forked(fail)
    except RuntimeError as error:
        return str(error)
    return ""


def end_with_fork_server() -> Any:
    """A child that would sleep for a minute; the fork server is killed."""
    child = ours.ForkedProcess(target=time.sleep, args=(60,))
    child.start()
    while "sleep" not in (wait := Path(f"/proc/{child.pid}/wchan").read_text()) and wait != "0":
        time.sleep(0.01)
    time.sleep(0.3)  # where the kernel does not say what it waits for
    os.kill(server_pid(), 9)
    child.join()
    deadline = time.monotonic() + 10
    stat = Path(f"/proc/{child.pid}/stat")
    while stat.exists() and ") Z" not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    return stat.exists() and ") Z" not in stat.read_text()


def server_pid() -> int:
    return int(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


def send_environment(sender: connection.Connection) -> None:
    sender.send(dict(os.environ))


def find_secrets() -> list[str]:
    """Who knows a credential: the server, and nobody else."""
    receiver, sender = connection.Pipe(duplex=False)
    child = ours.ForkedProcess(target=send_environment, args=(sender,))
    child.start()
    sender.close()
    known = {
        "server": str(dict(os.environ)),
        "child": str(receiver.recv()),
        "fork server": Path(f"/proc/{server_pid()}/environ").read_text(),
    }
    child.join()
    return [name for name, text in known.items() if SECRET in text]


STEPS = {
    "find secrets": find_secrets,
    "fork": fork,
    "refuse": refuse,
    "answer": lambda: ours.run_forked(lambda: 6 * 7),
    "kill": end_with_fork_server,
}


def main() -> None:
    ours._PRELOAD = sys.argv[1]
    os.environ[SERVER_VARIABLE] = str(os.getpid())
    os.environ["SET_EARLY"] = "gone later"
    os.environ["AWS_SECRET_ACCESS_KEY"] = os.environ["PGPASSWORD"] = SECRET
    ours.start()
    print(json.dumps(server_pid()), flush=True)  # noqa: T201
    del os.environ["SET_EARLY"]
    os.environ["SET_LATE"] = "yes"
    for line in sys.stdin:
        print(json.dumps(STEPS[line.strip()]()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
