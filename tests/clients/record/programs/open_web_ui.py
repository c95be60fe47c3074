"""Open WebUI's own server, without its user interface: asked as the interface asks it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asking import ADAPTER, IMAGE, KEY, PREFILL, QUESTION, TOOL, run

USER: Any = [{"role": "user", "content": QUESTION}]
START_SECONDS = 180
# Nobody signs in, nothing is fetched, and no model of its own is loaded.
ENVIRONMENT = {
    "WEBUI_AUTH": "false",
    "WEBUI_SECRET_KEY": "none",
    "USE_SLIM_DOCKER": "true",
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "ENABLE_OLLAMA_API": "false",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "ENABLE_PERSISTENT_CONFIG": "false",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "true",
}


class WebUi:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._token = ""

    def send(self, path: str, body: Any = None) -> str:
        request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {self._token}"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(answer.read().decode())

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it serves; sign in as the one user that it has."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                self.send("/health")
                break
            except OSError:
                time.sleep(0.5)
        signed = self.send("/api/v1/auths/signin", {"email": "", "password": ""})
        self._token = json.loads(signed)["token"]

    def connect(self, root: str) -> list[str]:
        """Point it at a server, as an administrator does; the models that it finds there."""
        connection = {
            "ENABLE_OPENAI_API": True,
            "OPENAI_API_BASE_URLS": [f"{root}/v1"],
            "OPENAI_API_KEYS": [KEY],
            "OPENAI_API_CONFIGS": {},
        }
        self.send("/openai/config/update", connection)
        listed = json.loads(self.send("/api/models?refresh=true"))["data"]
        return sorted(each["id"] for each in listed)

    def ask(self, root: str, **fields: Any) -> dict[str, Any]:
        self.connect(root)
        asked = {"model": ADAPTER, "messages": USER, "max_tokens": 12, "stream": False} | fields
        try:
            answer = self.send("/api/chat/completions", asked)
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            return {
                "error": {"class": None, "status": error.code, "code": None, "says": said[:300]}
            }
        return _streamed(answer) if asked["stream"] else _whole(json.loads(answer))


def _whole(answer: dict[str, Any]) -> dict[str, Any]:
    choice = answer["choices"][0]
    got = {"model": answer["model"], "finish": choice["finish_reason"]}
    if choice["message"].get("content"):
        got["text"] = choice["message"]["content"]
    if choice["message"].get("tool_calls"):
        got["tool"] = choice["message"]["tool_calls"][0]["function"]
    return got | {"tokens": answer["usage"]["completion_tokens"]}


def _streamed(answer: str) -> dict[str, Any]:
    """The pieces of a stream, as the interface puts them together."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data")]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk.get("choices")]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return {"model": chunks[0].get("model"), "text": text}


@contextmanager
def web_ui() -> Iterator[WebUi]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Path(sys.executable).with_name("open-webui")
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [str(command), "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=os.environ | ENVIRONMENT | {"DATA_DIR": folder},
            stdout=sys.stderr,
        )
        try:
            served = WebUi(port)
            served.wait(process)
            yield served
        finally:
            process.kill()
            process.wait()


with web_ui() as ui:
    picture = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": IMAGE}},
    ]
    run(
        {
            "models": lambda root: {"models": ui.connect(root)},
            "chat": ui.ask,
            "stream": lambda root: ui.ask(root, stream=True),
            "parts": lambda root: ui.ask(
                root, messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
            ),
            "habits": lambda root: ui.ask(root, seed=1, stop=["\n\n"], user="ada"),
            "tool": lambda root: ui.ask(
                root,
                max_tokens=60,
                tools=[TOOL],
                tool_choice={"type": "function", "function": {"name": "ship"}},
            ),
            "prefill": lambda root: ui.ask(
                root,
                messages=[*USER, {"role": "assistant", "content": PREFILL}],
                continue_final_message=True,
                add_generation_prompt=False,
            ),
            "image": lambda root: ui.ask(root, messages=[{"role": "user", "content": picture}]),
        }
    )
