"""The load generator's machine in words, without its name."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine(proc: Path = Path("/proc")) -> str:
    processor = _value(proc / "cpuinfo", "model name") or platform.machine()
    memory = _value(proc / "meminfo", "MemTotal").removesuffix(" kB")
    words = f"{os.cpu_count()} cores of {processor}, {platform.system()}"
    return f"{words}, {int(memory) / 1024**2:.0f} GiB" if memory.isdecimal() else words


def _value(path: Path, key: str) -> str:
    """The first line's with this key; empty where there is no such file or key."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
