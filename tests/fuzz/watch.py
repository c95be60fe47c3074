"""The watcher, a process of its own: how quickly `GET /livez` answers, and what the server holds.

`python -m tests.fuzz.watch PORT SESSION FILE` writes a line of JSON for each probe and each sample
until its standard input closes. Times are time.monotonic().
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from loadtest.servers.processes import members

EVERY_SECONDS = 0.02
_SAMPLE_SECONDS = 1.0
_PROC = Path("/proc")
_CHILDREN = {"EngineCore": "engine", "server.grammars.process": "grammars"}


def main() -> None:
    port, session, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sampled = 0.0
    with Path(file).open("w", buffering=1) as out:
        while not select.select([sys.stdin], [], [], EVERY_SECONDS)[0]:
            out.write(json.dumps(_probe(connection, session)) + "\n")
            if time.monotonic() - sampled > _SAMPLE_SECONDS:
                sampled = time.monotonic()
                out.write(json.dumps({"at": sampled, "held": sample(session)}) + "\n")


def _probe(connection: http.client.HTTPConnection, server: int) -> dict[str, Any]:
    waited = _waited(server)
    began = time.monotonic()
    try:
        connection.request("GET", "/livez")
        response = connection.getresponse()
        response.read()
        status = response.status
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        status = repr(error)  # type: ignore[assignment]
    took = time.monotonic() - began
    return {"at": began, "took": took, "status": status, "no_core": _waited(server) - waited}


def _waited(pid: int) -> float:
    """Seconds for which the process's main thread, its event loop, could run and had no core."""
    with contextlib.suppress(OSError, IndexError):
        return int((_PROC / f"{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def sample(session: int) -> dict[str, dict[str, int]]:
    """Pid, resident MiB, descriptors and threads of server, engine and grammar process."""
    found: dict[str, dict[str, int]] = {}
    for pid in members(session):  # sorted: the children of the grammar process come later
        with contextlib.suppress(OSError, ValueError):
            command = (_PROC / f"{pid}/cmdline").read_text().replace("\0", " ")
            named = (name for part, name in _CHILDREN.items() if part in command)
            name = "server" if pid == session else next(named, None)
            if name is not None and name not in found:
                found[name] = _held(pid)
    return found


def _held(pid: int) -> dict[str, int]:
    status = (_PROC / f"{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "pid": pid,
        "mib": int(fields["VmRSS"].split()[0]) // 1024,
        "threads": int(fields["Threads"]),
        "descriptors": len(os.listdir(_PROC / f"{pid}/fd")),  # noqa: PTH208
    }


if __name__ == "__main__":
    main()
