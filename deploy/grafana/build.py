"""Writes Grafana's dashboards from their sources here.

python deploy/grafana/build.py           writes dashboards/*.json
python deploy/grafana/build.py --check   says whether they are what the sources make
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapter
import overview
import residency

FOLDER = Path(__file__).parent / "dashboards"


def built() -> dict[Path, str]:
    pages = {"overview": overview, "adapter": adapter, "residency": residency}
    return {
        FOLDER / f"{name}.json": json.dumps(page.build(), indent=1) + "\n"
        for name, page in pages.items()
    }


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        stale = [path.name for path, text in built().items() if path.read_text() != text]
        return int(bool(stale) and sys.stderr.write(f"not what the sources make: {stale}\n") > 0)
    for path, text in built().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
