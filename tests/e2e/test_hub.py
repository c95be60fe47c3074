"""A base of the hub on the real engine, by its id alone, and an adapter published for it."""

from __future__ import annotations

import subprocess
import sys

import httpx2
import pytest
from hub_server import COMMIT, Repo, running
from server_process import ServerProcess
from shop import BASE, KEPT, MARKERS

pytestmark = pytest.mark.slow
ORDER = [{"role": "user", "content": "two blue lamps to Oslo by Friday"}]


def test_a_model_of_the_hub_is_served_by_its_id(tmp_path):
    store = tmp_path / "store"
    files = {path.name: path.read_bytes() for path in BASE.iterdir() if path.is_file()}
    with running({"acme/tiny": Repo(files, ("main", "v1"))}) as hub:
        environment = hub.environment(tmp_path / "hf")
        words = ["adapters", "publish", KEPT / "orders-json", "--name", "orders"]
        words += ["--base", "acme/tiny", "--store", store, "--allow-base-mismatch"]
        command = [sys.executable, "-m", "lorry", *map(str, words)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert "model.safetensors" not in hub.downloads()
        local = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        server = ServerProcess("acme/tiny@v1", store, tmp_path / "log", env=local)
        try:
            server.wait_ready()
            asked = len(hub.asked)
            models = httpx2.get(f"{server.url}/v1/models").json()["data"]
            assert {each["id"] for each in models} >= {"acme/tiny", "orders"}
            for model, answered in (("acme/tiny", "acme/tiny"), ("acme/tiny:orders", "orders@1")):
                answer = httpx2.post(
                    f"{server.url}/v1/chat/completions",
                    json={"model": model, "messages": ORDER, "max_tokens": 32},
                    timeout=60,
                )
                assert answer.json()["model"] == answered
                assert answer.headers["x-lorry-base"] == "acme/tiny"
                said = answer.json()["choices"][0]["message"]["content"]
            assert said.startswith(MARKERS["orders-json"])
            assert httpx2.get(f"{server.url}/v1/models/acme/tiny").json()["id"] == "acme/tiny"
            messages = [line["message"] for line in server.lines() if "message" in line]
            assert messages[0].startswith("fetching acme/tiny@v1 from the hub into ")
            assert any(COMMIT in message for message in messages)
            assert len(hub.asked) == asked  # nobody asks the hub any more
        finally:
            server.kill()
