"""Checks that compiled kernels were built from the sources beside them: others are not loaded.

Kernels of another checkout may have other schemas, which aborts the process when they are loaded,
or read another layout of the plan.

    python -m server.kernels.stamp      exits with 1 if the kernels have to be built again
"""

import hashlib
import sys
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_PREFIX = "lorry kernels "  # native/ops.cpp has the same


@cache
def digest() -> str:
    """Of the kernels' sources and the modules that must match them; setup.py builds it in."""
    sources = [*_sources(), _HERE / "operators.py", _HERE / "plan.py"]
    parts = [part for each in sources for part in (each.name.encode(), each.read_bytes())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def is_current(library: Path) -> bool:
    """A package without the kernels' sources was built as a whole: there any stamp will do."""
    stamp = _PREFIX + digest() if _sources() else _PREFIX
    return stamp.encode() in library.read_bytes()


def _sources() -> list[Path]:
    """The files that setup.py compiles or depends on, without an editor's hidden files."""
    found = (each for suffix in ("cpp", "h") for each in (_HERE / "native").glob(f"*.{suffix}"))
    return sorted(each for each in found if not each.name.startswith("."))


if __name__ == "__main__":
    sys.exit(not all(is_current(library) for library in _HERE.glob("_native*.so")))
