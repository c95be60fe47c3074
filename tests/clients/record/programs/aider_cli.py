"""aider's own command, asked one question in a folder without a repository."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from asking import ADAPTER, KEY, QUESTION, run

# aider writes what a person reads; these have it ask the model once and nobody else.
QUIET = (
    *("--no-git", "--yes-always", "--no-pretty", "--no-show-model-warnings", "--no-gitignore"),
    *("--no-check-update", "--analytics-disable", "--no-suggest-shell-commands"),
    *("--map-tokens", "0", "--edit-format", "ask", "--no-fancy-input", "--no-show-release-notes"),
)


def ask(root: str, *flags: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("aider")), "--model", f"openai/{ADAPTER}"),
                *("--openai-api-base", f"{root}/v1", "--openai-api-key", KEY),
                *(*QUIET, *flags, "--message", QUESTION),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
    _, _, said = done.stdout.partition("Repo-map: disabled\n")
    return {"text": said.strip()[:600]}


run({"stream": ask, "chat": lambda root: ask(root, "--no-stream")})
