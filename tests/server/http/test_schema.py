"""schemathesis over our OpenAPI: with no key at all, with keys of one scope, and with the token.

Over a stand-in engine; `make fuzz` sends the same schema to a real one. It starts schemathesis as a
process of its own, three times for some seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from api_keys import bearer, make_key
from server_process import ROOT
from sockets import served
from standin_server import TOKEN

SECONDS = 12


async def statuses(house, journal: Path, port: int, headers: dict[str, str]) -> Counter:
    given = [word for k, v in headers.items() for word in ("--header", f"{k}: {v}")]
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("st")), "run"),
        *(f"http://127.0.0.1:{port}/openapi.json", "--max-time", str(SECONDS), "--seed", "7"),
        *("--checks", "lorry_answer", "--no-shrink", "--generation-database", "none"),
        *("--suppress-health-check", "all", "--continue-on-failure", "--no-color", *given),
        cwd=journal.parent,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "tests.fuzz.schema_hooks",
            "LORRY_FUZZ_JOURNAL": str(journal),
            "LORRY_FUZZ_SEED": "7",
            "LORRY_FUZZ_KIND": "schema",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/fixtures'}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    text = await asyncio.to_thread(journal.read_text)
    lines = [json.loads(line) for line in text.splitlines()]
    faults = [(line["title"], line["status"], line["faults"]) for line in lines if line["faults"]]
    assert faults == [], said.decode()[-3000:]
    return Counter((line["title"].split()[1], line["status"]) for line in lines)


@pytest.mark.slow
async def test_what_keys_do_not_open_is_shut_whatever_is_sent(house, tmp_path, monkeypatch):
    """The schema itself needs a key: a key of no further use reads it for those without one."""
    schema = (await house.client.get("/openapi.json")).json()
    monkeypatch.setattr(house.parts.authenticator, "_open_metrics", False)
    inference = make_key(house.catalog, adapters=("*",), base=True)
    async with served(house.app) as site:
        found = await statuses(house, tmp_path / "inference.jsonl", site.port, inference)
        assert len(found) > 20
        for (path, status), _ in found.items():
            if path.startswith("/admin") or "lora_adapter" in path or path == "/metrics":
                assert status in (403, 405, 431), (path, status)
        assert {status for (path, status) in found if path == "/v1/chat/completions"} & {200, 400}
        scraper = make_key(house.catalog, "scraper", scopes=frozenset({"metrics"}))
        found = await statuses(house, tmp_path / "metrics.jsonl", site.port, scraper)
        for (path, status), _ in found.items():
            if path not in ("/livez", "/readyz", "/metrics", "/health", "/openapi.json"):
                assert status in (403, 405, 431), (path, status)
        assert house.catalog.keys.list_events(limit=1)[0].name == "scraper"
        found = await statuses(house, tmp_path / "admin.jsonl", site.port, bearer(TOKEN))
        assert {status for (path, status) in found if path == "/admin/keys"} & {200, 201}
        assert {status for (path, status) in found if path == "/v1/models"} <= {403, 431}
    assert schema["components"]["securitySchemes"].keys() == {"ApiKey", "AnthropicKey"}
