"""Fetch llama.cpp's source by its hash and build its server; run it as `make llama-cpp`.

The source comes with the sdist of llama-cpp-python, which is not installed. A build that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[2] / ".lorry/llama.cpp"
TARGETS = ("llama-server", "llama-quantize")
SOURCE, TOOLS = HERE / "source.txt", HERE / "tools.txt"  # what pip fetches
_VENDORED = "vendor/llama.cpp"
_CMAKE = "cmake-wheel"
# For this processor; without the tests, and without what reaches for the network.
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_ALL_WARNINGS": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


def main() -> None:
    if not is_current(FOLDER):
        shutil.rmtree(FOLDER, ignore_errors=True)
        fetch(FOLDER)
    build(FOLDER)
    sys.stdout.write(f"{FOLDER}\n")


def is_current(folder: Path) -> bool:
    """Whether the folder holds the pinned source."""
    copy = folder / SOURCE.name
    return copy.is_file() and copy.read_bytes() == SOURCE.read_bytes()


def fetch(folder: Path) -> None:
    """Download and unpack source and CMake; the folder appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llama.cpp-", dir=folder.parent) as name:
        scratch = Path(name)
        # pip asks a source package for its metadata, but does not build it.
        _pip("download", "--no-binary=llama-cpp-python", "--dest", name, "-r", str(SOURCE))
        unpack(next(scratch.glob("*.tar.gz")), scratch)
        found = next(scratch.glob(f"*/{_VENDORED}"))
        wheels = ("--only-binary=:all:", "--target", str(found / _CMAKE))
        _pip("install", *wheels, "-r", str(TOOLS))
        shutil.copy(SOURCE, found)
        found.rename(folder)


def unpack(sdist: Path, folder: Path) -> None:
    """Unpack llama.cpp alone."""
    with tarfile.open(sdist) as archive:
        wanted = [each for each in archive if f"/{_VENDORED}/" in each.name]
        archive.extractall(folder, wanted, filter="data")


def build(folder: Path) -> None:
    """Configure once, then compile what is missing."""
    cmake, out = str(folder / _CMAKE / "cmake/data/bin/cmake"), str(folder / "build")
    ninja = Path(sys.executable).parent / "ninja"  # part of the environment
    if not (folder / "build/build.ninja").is_file():
        options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
        generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}")
        _run(cmake, "-S", str(folder), "-B", out, *generator, *options)
    cores = str(len(os.sched_getaffinity(0)))
    _run(cmake, "--build", out, "--target", *TARGETS, "--parallel", cores)


def _pip(command: str, *arguments: str) -> None:
    hashed = ("--quiet", "--no-deps", "--require-hashes")
    _run(sys.executable, "-m", "pip", command, *hashed, *arguments)


def _run(*command: str) -> None:
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise SystemExit(f"error: `{' '.join(command[:4])} ...` ended with code {code}")


if __name__ == "__main__":
    main()
