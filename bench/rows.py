"""Every row of the benchmark: the two measurements that it compares, and its goal.

Rows of one contest share their rounds, so that a row compares neighbours in time. The order of the
contests decides which sides are up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from bench.errors import RowUnknown
from bench.spec import SideSpec
from bench.workload import BASE, Workload, adapter_names, sum_names

# speed: output tokens per second. truth: requests whose answer equals the one given alone.
Kind = Literal["speed", "truth"]


@dataclass(frozen=True, slots=True)
class Contest:
    name: str
    kind: Kind = "speed"
    most_rounds: int = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    side: SideSpec
    workload: Workload


@dataclass(frozen=True, slots=True)
class Row:
    """`over` / `under` is the ratio; a truth row compares one entry with itself, alone.

    Without a goal it is a control: both sides are the same, and the ratio shows the noise.
    """

    name: str
    what: str
    contest: Contest
    over: Entry
    under: Entry
    goal: float | None = None

    @property
    def entries(self) -> tuple[Entry, Entry]:
        return self.over, self.under


BASE16 = SideSpec("lorry")
OURS16 = SideSpec("lorry", max_loras=8)
BASE4 = SideSpec("lorry", "bitsandbytes")
OURS4 = SideSpec("lorry", "bitsandbytes", max_loras=8)
STOCK4 = SideSpec("stock", "bitsandbytes", max_loras=8)
STOCK4_TUNED = SideSpec("stock-tuned", "bitsandbytes", max_loras=8)

EIGHT = adapter_names(16, 8)
PLAIN = Workload()
MIXED = Workload(adapters=EIGHT)
# Half base, half adapters.
BETWEEN = Workload(streams=16, adapters=tuple(x for name in EIGHT for x in (BASE, name)))

_SLOW = 3  # rounds, where one side needs most of a minute for each


def all_rows() -> list[Row]:
    return [*_bf16_rows(), *_shape_rows(), *_nf4_rows()]


def choose(patterns: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The rows that match any of the patterns (`mixed-*`), in their own order.

    Raises:
        RowUnknown: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            known = ", ".join(row.name for row in rows)
            raise RowUnknown(f"no row is called {pattern!r}; there are: {known}")
    return [row for row in rows if any(fnmatchcase(row.name, p) for p in patterns)]


def shrink(row: Row) -> Row:
    """The same row with few tokens: for a run that only shows that everything runs."""
    over, under = (
        replace(entry, workload=replace(entry.workload, prompt_tokens=16, output_tokens=4))
        for entry in row.entries
    )
    return replace(row, over=over, under=under)


def _bf16_rows() -> list[Row]:
    return [*_mixed_rows("bf16", OURS16, BASE16), _truth_row("truth-bf16", OURS16)]


def _shape_rows() -> list[Row]:
    """The cost of many slots, of a high rank and of sums; in bf16, where LoRA is a larger share."""
    contest = Contest("shapes")
    many = Workload(streams=32, adapters=adapter_names(16, 32))  # one stream for each adapter
    high = replace(MIXED, adapters=adapter_names(64, 8))
    sums = replace(MIXED, adapters=sum_names(8))
    return [
        Row(
            "slots-32",
            "32 adapters mixed, 32 streams / best base",
            contest,
            Entry(SideSpec("lorry", max_loras=32), many),
            Entry(BASE16, replace(many, adapters=(BASE,))),
            0.85,
        ),
        Row(
            "rank-64",
            "8 adapters of rank 64 mixed / best base",
            contest,
            Entry(SideSpec("lorry", max_loras=8, max_lora_rank=64), high),
            Entry(BASE16, PLAIN),
            0.80,
        ),
        Row(
            "sums-16",
            "8 sums of two adapters of rank 8 mixed / 8 adapters of rank 16 mixed",
            contest,
            Entry(OURS16, sums),
            Entry(replace(OURS16, is_twin=True), MIXED),
            0.98,
        ),
    ]


def _nf4_rows() -> list[Row]:
    weights, stock = Contest("weights"), Contest("stock-nf4", most_rounds=_SLOW)
    ours, one = Entry(OURS4, MIXED), Workload(streams=1)
    tuned = "8 adapters mixed / stock with our process settings"
    return [
        Row(
            "nf4-1",
            "NF4 / bf16, no LoRA, 1 stream",
            weights,
            Entry(BASE4, one),
            Entry(BASE16, one),
            1.5,
        ),
        Row(
            "nf4-24",
            "NF4 / bf16, no LoRA, 24 streams",
            weights,
            Entry(BASE4, PLAIN),
            Entry(BASE16, PLAIN),
            0.9,
        ),
        *_mixed_rows("nf4", OURS4, BASE4),
        _truth_row("truth-nf4", OURS4),
        Row("stock-nf4", "8 adapters mixed / stock", stock, ours, Entry(STOCK4, MIXED), 10),
        Row("stock-tuned-nf4", tuned, stock, ours, Entry(STOCK4_TUNED, MIXED), 7),
    ]


def _mixed_rows(weights: str, ours: SideSpec, base: SideSpec) -> list[Row]:
    """What LoRA costs with and without adapters in the batch, and how far off chance puts 1."""
    contest, best = Contest(f"mixed-{weights}"), Entry(base, PLAIN)
    twin = replace(best, side=replace(base, is_twin=True))
    only_base = "LoRA on, base requests / best base"
    noise = "best base / best base in another process"
    return [
        Row(
            f"mixed-{weights}",
            "8 adapters mixed / best base",
            contest,
            Entry(ours, MIXED),
            best,
            0.90,
        ),
        Row(f"base-only-{weights}", only_base, contest, Entry(ours, PLAIN), best, 0.98),
        Row(f"noise-{weights}", noise, contest, best, twin),
    ]


def _truth_row(name: str, side: SideSpec) -> Row:
    entry = Entry(side, BETWEEN)
    what = "base requests among adapters' / the same alone"
    return Row(name, what, Contest(name, "truth", _SLOW), entry, entry, 1.0)
