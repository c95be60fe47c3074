"""Records what real clients ask, and what they make of the answers: `make record-clients`.

`python -m tests.clients.record NAME...` records the clients of these names (clients.toml). Each is
installed from its registry, runs its program against a real server behind a proxy that writes the
requests down, and its recording in tests/clients/recordings is replaced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "fixtures"))

from running_server import serving  # noqa: E402
from server_process import ServerProcess  # noqa: E402
from shop import SERVED, keep_shop  # noqa: E402

from tests.clients.record.environments import Client, command, read_clients  # noqa: E402
from tests.clients.record.proxy import Proxy  # noqa: E402
from tests.clients.recordings import write  # noqa: E402

ENVIRONMENTS = ROOT / ".lorry" / "clients"


def main(names: list[str]) -> int:
    clients = [each for each in read_clients() if not names or each.name in names]
    commands = [command(each, ENVIRONMENTS) for each in clients]
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        shop = keep_shop(Path(folder) / "store")
        server = ServerProcess(shop.base, shop.store, Path(folder) / "log", *SERVED)
        try:
            server.wait_ready()
            for client, words in zip(clients, commands, strict=True):
                sys.stdout.write(f"{client.title}\n")
                sys.stdout.flush()
                try:
                    write(client.name, *record(client, words, server.url))
                except subprocess.CalledProcessError as error:
                    failed.append(client.title)
                    sys.stdout.write(f"{client.title} failed: {error}\n")
        finally:
            server.kill()
    return 1 if failed else 0


def record(
    client: Client, words: list[str], url: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is to be known of one client, and its cases."""
    proxy = Proxy(url)
    with serving(proxy) as address:
        done = subprocess.run(
            words,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(ENVIRONMENTS),
                "PROXY": address,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    cases = [
        {"case": told["case"], "requests": proxy.requests.get(told["case"], []), "got": told["got"]}
        for told in map(json.loads, done.stdout.splitlines())
    ]
    facts = {"title": client.title, "packages": client.packages}
    return facts | {"headers": _shared_headers(cases)}, cases


def _shared_headers(cases: list[dict[str, Any]]) -> dict[str, str]:
    """Takes the headers that all requests have out of the requests."""
    heads = [request["headers"] for case in cases for request in case["requests"]]
    shared = dict(set.intersection(*(set(head.items()) for head in heads)))
    for head in heads:
        for name in shared:
            del head[name]
    return dict(sorted(shared.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
