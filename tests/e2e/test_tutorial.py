"""Runs every command of docs/tutorial.md on a server with an empty store."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ROOT, ServerProcess
from shop import BASE, BASE_NAME

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-at-least-16-characters"


def blocks() -> list[str]:
    """The commands of each section, in order."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    return re.findall(r"```bash\n(.*?)```", text, flags=re.S)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    store = tmp_path / "store"
    name = ("--served-model-name", BASE_NAME)
    server = ServerProcess(BASE, store, tmp_path / "log", *name, env={"LORRY_ADMIN_TOKEN": TOKEN})
    yield server.wait_ready()
    server.kill()


def test_every_command_does_what_the_page_says(server: ServerProcess, tmp_path: Path) -> None:
    mark, serve, *others = blocks()
    assert f"lorry serve examples/shop/base --served-model-name {BASE_NAME}" in serve
    script = "\n".join(["set -eu", mark, *others])
    script = script.replace(":8000", f":{server.port}").replace(".lorry/tutorial", str(tmp_path))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for shown in (
        "lt-0000.v1",
        "greeter@1 sha256:",
        "greeter@stable -> greeter@1 90%, greeter@2 10%",
        '"model":"greeter@2"',
        "greeter@stable -> greeter@2",
        "alias_rolled_back",
        "x-lorry-adapter: greeter@1",
        'lorry_requests_total{adapter="greeter"',
    ):
        assert shown in done.stdout, f"{shown} is not in:\n{done.stdout}"
