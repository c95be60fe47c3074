"""Builds Grafana's dashboards.

python deploy/grafana/build.py           writes dashboards/*.json
python deploy/grafana/build.py --check   fails when dashboards/*.json are out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapter
import overview
import residency

FOLDER = Path(__file__).parent / "dashboards"


def rendered() -> dict[Path, str]:
    pages = {"overview": overview, "adapter": adapter, "residency": residency}
    return {
        FOLDER / f"{name}.json": json.dumps(page.build(), indent=1) + "\n"
        for name, page in pages.items()
    }


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        if stale := [path.name for path, text in rendered().items() if path.read_text() != text]:
            sys.stderr.write(f"out of date, run deploy/grafana/build.py: {', '.join(stale)}\n")
        return int(bool(stale))
    for path, text in rendered().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
