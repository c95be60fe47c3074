"""An adapter's whole way: trained, killed, resumed, published, judged, gated and served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from admin_client import TOKEN
from server_process import ROOT
from shop import SHOP

pytestmark = pytest.mark.slow
NAME = "whole-way"
DATA = SHOP / "data" / "orders-json.heldout.jsonl"


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lorry", *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a person starts it."""
    env = os.environ | {"LORRY_ADMIN_TOKEN": TOKEN}
    done = subprocess.run(
        command(*words), cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def kill_after_a_checkpoint(output: Path, words: tuple[object, ...]) -> None:
    with subprocess.Popen(command(*words), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not list(output.glob(".*.partial/checkpoints/checkpoint-*/trainer_state.json")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_an_adapter_is_trained_killed_resumed_judged_gated_and_served(
    server, shop, admin, tmp_path
):
    train = (
        *("train", SHOP / "recipes" / "orders-json.yaml", "--output", tmp_path, "--set"),
        *(f"name={NAME}", "--set", "optimization.max_steps=60", "--set", "evaluation.every=20"),
    )
    kill_after_a_checkpoint(tmp_path, train)
    done = run(*train, "--resume", "--publish", "--no-alias", "--store", shop.store, "--json")
    assert "resuming after step 20" in done.stderr
    trained = json.loads(done.stdout)
    assert trained["provenance"]["steps"] == 60
    path = f"/{NAME}/aliases/stable"
    admin.ask("PUT", path, 409, json={"version": 1, "gate": "json-equal"})
    run(
        *("evaluate", f"{NAME}@1", "--data", DATA, "--limit", 12, "--metric", "json-equal"),
        *("--url", server.url),
    )
    admin.ask("PUT", path, json={"version": 1, "gate": "json-equal"})
    ((prompt, expected), *_) = shop.heldout("orders-json", 1)
    answer = httpx2.post(
        f"{server.url}/v1/chat/completions",
        json={
            "model": NAME,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 160,
        },
        timeout=120,
    )
    assert answer.json()["model"] == f"{NAME}@1"
    assert answer.headers["x-lorry-adapter-digest"] == trained["published"]["digest"]
    found = answer.json()["choices"][0]["message"]["content"]
    assert json.loads(found).keys() == json.loads(expected).keys()
