"""Whether compiled kernels were made from the sources beside them: else they are not loaded.

Those of another checkout may hold operators of other schemas, at which loading them aborts the
process, or read a plan that is laid out otherwise.

    python -m server.kernels.stamp      exits with 1 where they have to be built again
"""

import hashlib
import sys
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_PREFIX = "lorry kernels "  # native/ops.cpp has the same


@cache
def digest() -> str:
    """Of the kernels' sources and of what they have to agree with; setup.py builds it in."""
    sources = [*_sources(), _HERE / "operators.py", _HERE / "plan.py"]
    parts = [part for each in sources for part in (each.name.encode(), each.read_bytes())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def is_current(library: Path) -> bool:
    """Packages without the kernels' sources were built whole: there any stamp will do."""
    stamp = _PREFIX + digest() if _sources() else _PREFIX
    return stamp.encode() in library.read_bytes()


def _sources() -> list[Path]:
    """Those that setup.py compiles or waits for, and not what an editor leaves beside them."""
    found = (each for suffix in ("cpp", "h") for each in (_HERE / "native").glob(f"*.{suffix}"))
    return sorted(each for each in found if not each.name.startswith("."))


if __name__ == "__main__":
    sys.exit(not all(is_current(library) for library in _HERE.glob("_native*.so")))
