"""API keys on the real engine: OpenAI's client with nothing but `api_key` and `base_url`.

An engine of its own: with the first key in its catalog the shared server would refuse all others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from server_process import ROOT, ServerProcess
from shop import BASE_NAME, SERVED, Shop, keep_shop

pytestmark = pytest.mark.slow  # a server of its own; tests/server/test_keys.py has the rules


def lorry(*command: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "lorry", *command, "--json"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def shut_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return keep_shop(tmp_path_factory.mktemp("shut") / "store")


@pytest.fixture(scope="module")
def keys(shut_shop: Shop) -> dict[str, str]:
    store = ("--store", str(shut_shop.store))
    made = {
        "root": lorry("keys", "create", "--name", "root", "--scope", "admin", *store),
        "sql": lorry(
            *("keys", "create", "--name", "sql", "--adapters", "orders-s*", "--base", *store),
            *("--expires", "90d", "--weight", "2"),
        ),
    }
    return {name: each["key"] for name, each in made.items()}


@pytest.fixture(scope="module")
def shut(
    shut_shop: Shop, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that listens on every address, as one with keys may."""
    log = tmp_path_factory.mktemp("shut-log") / "log"
    server = ServerProcess(shut_shop.base, shut_shop.store, log, "--host", "0.0.0.0", *SERVED)
    try:
        yield server.wait_ready()
    finally:
        server.kill()


def client_of(server: ServerProcess, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)


MESSAGES: Any = [{"role": "user", "content": "two blue lamps to Oslo by Friday"}]


def test_openais_client_needs_its_key_and_sees_what_that_may_use(shut, keys):
    client = client_of(shut, keys["sql"])
    assert [model.id for model in client.models.list()] == [BASE_NAME, "orders-sql"]
    answer = client.chat.completions.create(model="orders-sql", messages=MESSAGES, max_tokens=20)
    assert answer.model == "orders-sql@1"
    with pytest.raises(openai.NotFoundError) as hidden:
        client.chat.completions.create(model="orders-json", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError) as absent:
        client.chat.completions.create(model="nobodys-own", messages=MESSAGES)
    assert hidden.value.message.replace("orders-json", "nobodys-own") == absent.value.message
    for wrong in (keys["sql"][:-1], "none"):
        with pytest.raises(openai.AuthenticationError) as refused:
            client_of(shut, wrong).models.list()
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        client_of(shut, keys["root"]).models.list()
    lines = [line for line in shut.calls() if line["key"] == "sql"]
    assert [line["status"] for line in lines] == [200, 404, 404]


def test_a_revoked_keys_stream_ends_within_a_second(shut, keys):
    made = lorry(
        "keys", "create", "--name", "brief", "--base", "--url", shut.url, LORRY_API_KEY=keys["root"]
    )
    stream = client_of(shut, made["key"]).completions.create(
        model=BASE_NAME, prompt="a", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    pieces = iter(stream)
    next(pieces)
    headers = {"authorization": f"Bearer {keys['root']}"}
    answer = httpx2.post(f"{shut.url}/admin/keys/brief/revoke", headers=headers)
    assert answer.json()["status"] == "revoked"
    began = time.monotonic()
    with pytest.raises(openai.APIError, match="is revoked"):
        for _ in pieces:
            pass
    assert time.monotonic() - began < 5  # within one as a rule, and more on a busy machine
    events = lorry_history(shut, keys)
    assert [(each["action"], each["actor"]) for each in events] == [
        ("key_created", "key:root"),
        ("key_revoked", "key:root"),
    ]


def lorry_history(server: ServerProcess, keys: dict[str, str]) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {keys['root']}"}
    answer = httpx2.get(f"{server.url}/admin/keys/brief/history", headers=headers)
    return list(answer.json()["data"])


def test_no_process_and_no_log_has_a_secret(shut, keys):
    for secret in keys.values():
        assert secret not in shut.log.read_text()
        for pid in shut.group():
            for part in ("cmdline", "environ"):
                text = Path(f"/proc/{pid}/{part}").read_bytes()
                assert secret.encode() not in text
