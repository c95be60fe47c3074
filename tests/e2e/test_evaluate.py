"""`lorry evaluate --url`: the shared server answers for base and adapter, and keeps the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from admin_client import TOKEN
from server_process import ROOT
from shop import SHOP


def lorry(*words: object) -> subprocess.CompletedProcess[str]:
    """A process: the command reads the token and the server's address as a person gives them."""
    return subprocess.run(
        [sys.executable, "-m", "lorry", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"LORRY_ADMIN_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_adapter_is_judged_through_the_server_and_passes_the_gate(server, shop, admin):
    heldout = SHOP / "data" / "orders-json.heldout.jsonl"
    done = lorry(
        *("evaluate", "orders-json@1", "--data", heldout, "--limit", 12, "--url", server.url),
        *("--metric", "json-equal", "--json"),
    )
    assert done.returncode == 0, done.stderr
    (judged,) = json.loads(done.stdout)["versions"]
    found = judged["evaluation"]
    assert (found["by"], found["examples"], found["metric"]) == ("server", 12, "json-equal")
    assert found["score"]["mean"] > 0.5
    assert found["comparisons"][0]["score"]["mean"] == 0
    assert found["comparisons"][0]["exceeds_noise"] is True
    (version,) = admin.ask("GET", "/orders-json")["versions"]
    assert version["evaluations"][-1] == found
    path = "/orders-json/aliases/judged"
    admin.ask("PUT", path, 409, json={"version": 1, "gate": "exact-match"})
    admin.ask("PUT", path, json={"version": 1, "gate": "json-equal"})
    admin.ask("DELETE", path)
