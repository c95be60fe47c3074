"""What `helm test` runs in a pod, on a real server."""

from __future__ import annotations

import subprocess
import sys

from chart import CHART
from shop import BASE_NAME

SMOKE = (CHART / "files" / "smoke.py").read_text()


def smoke(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SMOKE, url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_charts_test_passes_on_a_server(server):
    done = smoke(server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{BASE_NAME} answers\n")


def test_the_charts_test_fails_without_a_server():
    assert smoke("http://127.0.0.1:9").returncode != 0
