"""Uploads over real HTTP: where their files are while they arrive, and what remains of them."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import numpy as np
import pytest
from adapter_files import CONFIG, WEIGHTS, Draft, bf16
from running_server import RunningServer, running_server
from standin_server import TOKEN

from adapters.catalog import Catalog
from server.admin import publishing, uploads

HIDDEN = 16
BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    # Any use of the machine's temporary folder fails.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(BASE))
    with running_server(base, tmp_path) as server:
        yield server


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "base",
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    random = np.random.default_rng(1)
    sides = {"A": (4, HIDDEN), "B": (HIDDEN, 4)}
    tensors = {
        f"{path}.lora_{side}.weight": bf16(random.normal(0, 0.1, shape))
        for side, shape in sides.items()
    }
    return Draft(config, tensors).write(tmp_path / "adapter")


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, headers=BEARER, timeout=30) as client:
        yield client


def form(adapter: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (path.name, path.read_bytes())) for path in sorted(adapter.iterdir())]


class SlowUpload:
    """An upload of which all but the end is sent; `finish` sends the rest."""

    def __init__(self, server: RunningServer, adapter: Path, name: str) -> None:
        fields = {"name": name}
        request = httpx2.Request("POST", server.url, data=fields, files=form(adapter))
        self._body = request.read()
        head = (
            f"POST /admin/adapters HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
            f"content-type: {request.headers['content-type']}\r\nconnection: close\r\n"
            f"content-length: {len(self._body)}\r\n\r\n"
        )
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self._half = len(self._body) - 100
        self.socket.sendall(head.encode() + self._body[: self._half])

    def finish(self) -> int:
        """The status of the answer."""
        self.socket.sendall(self._body[self._half :])
        return self.status()

    def status(self) -> int:
        with closing(self.socket), self.socket.makefile("rb") as answer:
            return int(answer.read().split()[1])


def unfinished(server: RunningServer) -> list[str]:
    """The names of the files in the store that are not objects yet."""
    return sorted(path.name for path in (server.store / "tmp").rglob("*") if path.is_file())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def labels(server: RunningServer) -> list[str]:
    with Catalog.open(server.store) as catalog:
        return [version.label for version in catalog.list_versions()]


def assert_nothing_is_left(server: RunningServer) -> None:
    wait_until(lambda: not list((server.store / "tmp").iterdir()))
    assert not list(server.store.glob("objects/sha256/??/*"))
    assert labels(server) == []


def test_an_upload_arrives_in_the_store_and_becomes_an_object(server, adapter) -> None:
    upload = SlowUpload(server, adapter, "orders")
    wait_until(lambda: unfinished(server) == [CONFIG, WEIGHTS])
    assert labels(server) == []
    assert upload.finish() == 201
    assert list((server.store / "tmp").iterdir()) == []
    (served,) = server.store.glob("objects/sha256/??/*")
    for name in (CONFIG, WEIGHTS):
        assert (served / name).read_bytes() == (adapter / name).read_bytes()
        assert (served / name).stat().st_mode & 0o777 == 0o444
    assert labels(server) == ["orders@1"]


def test_nothing_is_left_when_the_caller_hangs_up(server, client, adapter, caplog) -> None:
    upload = SlowUpload(server, adapter, "orders")
    wait_until(lambda: unfinished(server) == [CONFIG, WEIGHTS])
    upload.socket.close()
    assert_nothing_is_left(server)
    assert not [record for record in caplog.records if record.exc_info]
    done = client.post("/admin/adapters", data={"name": "orders"}, files=form(adapter))
    assert done.status_code == 201


def test_nothing_is_left_of_an_upload_that_stalls(server, adapter, monkeypatch) -> None:
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.2)
    assert SlowUpload(server, adapter, "orders").status() == 408
    assert_nothing_is_left(server)


def test_nothing_is_left_of_an_upload_that_takes_too_long(server, adapter, monkeypatch) -> None:
    monkeypatch.setattr(uploads, "WHOLE_SECONDS", 0.2)
    assert SlowUpload(server, adapter, "orders").status() == 408
    assert_nothing_is_left(server)


def test_nothing_is_left_of_a_refused_adapter(server, client, adapter) -> None:
    (adapter / WEIGHTS).write_bytes(b"\0" * 100)
    refused = client.post("/admin/adapters", data={"name": "orders"}, files=form(adapter))
    assert (refused.status_code, bool(refused.json()["problems"])) == (422, True)
    assert_nothing_is_left(server)


@pytest.mark.parametrize("is_announced", [True, False])
def test_nothing_is_left_of_an_upload_that_is_too_large(server, client, is_announced) -> None:
    files = [("file", (WEIGHTS, bytes(1_100_000)))]
    request = client.build_request("POST", "/admin/adapters", data={"name": "x"}, files=files)
    body = request.read()
    headers = {"content-type": request.headers["content-type"]}
    content = body if is_announced else iter([body[:500_000], body[500_000:]])
    refused = client.post("/admin/adapters", content=content, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
    if not is_announced:
        assert_nothing_is_left(server)


def test_two_uploads_run_at_once_and_a_third_gets_a_503_with_retry_after(
    server, client, adapter, monkeypatch
) -> None:
    monkeypatch.setattr(publishing, "_TURN_SECONDS", 0.2)
    first, second = (SlowUpload(server, adapter, name) for name in ("a", "b"))
    wait_until(lambda: unfinished(server) == [CONFIG, CONFIG, WEIGHTS, WEIGHTS])
    third = client.post("/admin/adapters", data={"name": "c"}, files=form(adapter))
    assert (third.status_code, third.json()["error"]["code"]) == (503, "publishing_busy")
    assert int(third.headers["retry-after"]) > 0
    assert unfinished(server) == [CONFIG, CONFIG, WEIGHTS, WEIGHTS]
    assert (first.finish(), second.finish()) == (201, 201)
    again = client.post("/admin/adapters", data={"name": "c"}, files=form(adapter))
    assert again.status_code == 201
    assert labels(server) == ["a@1", "b@1", "c@1"]


def test_an_upload_that_waits_for_its_turn_is_not_read(server, adapter) -> None:
    first, second = (SlowUpload(server, adapter, name) for name in ("a", "b"))
    wait_until(lambda: len(unfinished(server)) == 4)
    third = SlowUpload(server, adapter, "c")
    time.sleep(0.2)
    assert len(list((server.store / "tmp").iterdir())) == 2
    assert [upload.finish() for upload in (first, third, second)] == [201, 201, 201]


def test_a_full_disk_is_a_507_with_its_reason(server, client, adapter, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "copy_bounded", full)
    refused = client.post("/admin/adapters", data={"name": "orders"}, files=form(adapter))
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "store_full")
    assert "No space left" in refused.json()["error"]["message"]
    assert_nothing_is_left(server)
