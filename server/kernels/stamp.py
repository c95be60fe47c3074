"""Whether compiled kernels were made from the sources beside them: else they are not loaded.

Those of another checkout may hold operators of other schemas, at which loading them aborts the
process, or read a plan that is laid out otherwise.
"""

import hashlib
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_PREFIX = "lorry kernels "  # native/ops.cpp has the same


@cache
def digest() -> str:
    """Of the kernels' sources and of what they have to agree with; setup.py builds it in."""
    sources = [*sorted(_HERE.glob("native/*.[ch]*")), _HERE / "operators.py", _HERE / "plan.py"]
    parts = [part for each in sources for part in (each.name.encode(), each.read_bytes())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def is_current(library: Path) -> bool:
    """Packages without the kernels' sources were built whole, so there is nothing to compare."""
    has_sources = (_HERE / "native").is_dir()
    return not has_sources or (_PREFIX + digest()).encode() in library.read_bytes()
