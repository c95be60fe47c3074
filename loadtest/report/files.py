"""Files of a report: pages from templates, written whole or not at all."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from loadtest.errors import OutUnwritable
from loadtest.report.figures import in_column, percent

# Of a processor: what kernels choose by.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("loadtest.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(figure=in_column, share=percent)
    return environment.get_template(template).render(**values)


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a temporary file and rename it to `path`; write to a device or pipe directly.

    Raises:
        OutUnwritable: the file can't be written; nothing of it is left.
    """
    plain = path.is_file() or not path.exists()
    target = path.with_name(f".{path.name}.{os.getpid()}") if plain else path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.writelines(chunks)
        if plain:
            target.replace(path)
    except OSError as error:
        if plain:
            with suppress(OSError):
                target.unlink()
        raise OutUnwritable(f"can't write {path}: {error.strerror}; choose another file") from None


def show_paths(console: Console, page: Path, document: Path, as_json: bool) -> None:
    """Print where the page is, and with `as_json` the document itself to stdout."""
    console.print(f"more in {page}", soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(document.read_text())


def describe_machine(proc: Path = Path("/proc")) -> str:
    """The load generator's processor, system and memory; not its host name."""
    processor = _value(proc / "cpuinfo", "model name") or platform.machine()
    memory = _value(proc / "meminfo", "MemTotal").removesuffix(" kB")
    flags = _value(proc / "cpuinfo", "flags").split()
    features = ", ".join(name.upper() for name in _FEATURES if name in flags)
    named = f"{processor} ({features})" if features else processor
    words = f"{os.cpu_count()} cores of {named}, {platform.system()}"
    return f"{words}, {int(memory) / 1024**2:.0f} GiB" if memory.isdecimal() else words


def _value(path: Path, key: str) -> str:
    """The value of the first line with this key; empty if the file or the key is missing."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
