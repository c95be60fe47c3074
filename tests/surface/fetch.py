"""The Python sources of a vLLM release, kept in `.lorry/vllm-sources/VERSION`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.surface.ours import ROOT

KEPT = ROOT / ".lorry" / "vllm-sources"


def fetch(version: str) -> Path:
    """The folder of a release's sources; the first time pip downloads its wheel, some 300 MB.

    Raises SystemExit with what to do.
    """
    folder = KEPT / version
    if folder.is_dir():
        return folder
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as scratch:
        made = Path(scratch) / "sources"
        _extract(_download(version, Path(scratch)), made)
        made.rename(folder)
    return folder


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"vllm=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise SystemExit(
            f"error: vllm {version} can't be downloaded: {reason[0]}. With its sources in a folder "
            "(an extracted wheel), give --sources FOLDER."
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if name.endswith(".py")]
        packed.extractall(folder, names)
