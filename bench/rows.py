"""Every row of the benchmark: which two measurements it sets side by side, and its goal.

Rows of one contest are measured in the same rounds, so that a row compares neighbours in time.
The order of the contests decides which sides are up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from bench.errors import RowUnknown
from bench.spec import SideSpec
from bench.workload import BASE, Workload, adapter_names

# speed: output tokens per second. memory: peak bytes. truth: requests answered as if alone.
Kind = Literal["speed", "memory", "truth"]


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
    """`over` / `under` is the ratio; a truth row compares one entry with itself, alone."""

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
STOCK16 = SideSpec("stock", max_loras=8)
STOCK4 = SideSpec("stock", "bitsandbytes", max_loras=8)
STOCK4_TUNED = SideSpec("stock-tuned", "bitsandbytes", max_loras=8)
WIDE16 = SideSpec("lorry", max_loras=8, max_lora_rank=64)

EIGHT = adapter_names(16, 8)
PLAIN = Workload()
MIXED = Workload(adapters=EIGHT)
# Half base, half adapters; few enough for a side that is ten times slower.
BETWEEN = Workload(streams=16, adapters=tuple(x for name in EIGHT for x in (BASE, name)))

_SLOW = 3  # rounds, where one side needs most of a minute for each


def all_rows() -> list[Row]:
    return [*_bf16_rows(), *_shape_rows(), *_nf4_rows()]


def choose(patterns: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The rows that fit any of the patterns (`memory-*`), in their own order.

    Raises:
        RowUnknown: a pattern fits none.
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
    mixed = Contest("mixed-bf16")
    peers = Contest("peers", most_rounds=_SLOW)
    ours, base = Entry(OURS16, MIXED), Entry(BASE16, PLAIN)
    only_base = Entry(OURS16, PLAIN)
    switch = Entry(SideSpec("peft-switch"), MIXED)
    together = Entry(SideSpec("peft-mixed"), MIXED)
    return [
        *_memory_rows("bf16", OURS16, BASE16, STOCK16),
        Row("mixed-bf16", "8 adapters mixed / best base", mixed, ours, base, 0.90),
        Row("base-only-bf16", "LoRA on, base requests / best base", mixed, only_base, base, 0.98),
        _noise_row("bf16", mixed, base),
        *_prompt_rows(),
        _truth_row("truth-bf16", OURS16, goal=1.0),
        # How often answers part where tokens are level when no adapter is anywhere near.
        _truth_row("truth-base-bf16", BASE16, workload=Workload(streams=16), rounds=1),
        Row("peer-switch", "8 adapters mixed / PEFT switching", peers, ours, switch),
        Row("peer-mixed", "8 adapters mixed / PEFT's mixed batch", peers, ours, together),
    ]


def _shape_rows() -> list[Row]:
    """What the numbers of slots and ranks cost; in bf16, where LoRA is the larger share."""
    slots, ranks = Contest("slots", most_rounds=_SLOW), Contest("ranks", most_rounds=_SLOW)
    many = Workload(streams=32)  # one for each of 32 adapters
    base = Entry(BASE16, PLAIN)
    rows = [
        Row(
            f"slots-{count}",
            f"{count} of {count} adapters, 32 streams / best base",
            slots,
            Entry(replace(OURS16, max_loras=count), replace(many, adapters=names)),
            Entry(BASE16, many),
        )
        for count in (1, 8, 32)
        for names in [adapter_names(16, count)]
    ]
    by_rank = {rank: replace(MIXED, adapters=adapter_names(rank, 8)) for rank in (8, 16, 64)}
    rows += [
        Row(
            f"rank-{rank}",
            f"8 adapters of rank {rank}, max_lora_rank 64 / best base",
            ranks,
            Entry(WIDE16, workload),
            base,
        )
        for rank, workload in by_rank.items()
    ]
    padded = "rank 16 under max_lora_rank 64 / under 16"
    rows.append(Row("padding", padded, ranks, Entry(WIDE16, by_rank[16]), Entry(OURS16, MIXED)))
    return rows


def _nf4_rows() -> list[Row]:
    mixed, weights = Contest("mixed-nf4"), Contest("weights")
    stock = Contest("stock-nf4", most_rounds=_SLOW)
    ours, base = Entry(OURS4, MIXED), Entry(BASE4, PLAIN)
    only_base = Entry(OURS4, PLAIN)
    one = Workload(streams=1)
    nf4, bf16 = Entry(BASE4, one), Entry(BASE16, one)
    return [
        *_memory_rows("nf4", OURS4, BASE4, STOCK4),
        Row("nf4-1", "NF4 / bf16, no LoRA, 1 stream", weights, nf4, bf16, 1.5),
        Row("nf4-24", "NF4 / bf16, no LoRA, 24 streams", weights, base, Entry(BASE16, PLAIN), 0.9),
        Row("mixed-nf4", "8 adapters mixed / best base", mixed, ours, base, 0.90),
        Row("base-only-nf4", "LoRA on, base requests / best base", mixed, only_base, base, 0.98),
        _noise_row("nf4", mixed, base),
        _truth_row("truth-nf4", OURS4, goal=1.0),
        _truth_row("truth-stock-nf4", STOCK4_TUNED, rounds=1),
        Row("stock-nf4", "8 adapters mixed / stock", stock, ours, Entry(STOCK4, MIXED), 10),
        Row(
            "stock-tuned-nf4",
            "8 adapters mixed / stock with our process settings",
            stock,
            ours,
            Entry(STOCK4_TUNED, MIXED),
            7,
        ),
    ]


def _memory_rows(weights: str, ours: SideSpec, base: SideSpec, stock: SideSpec) -> list[Row]:
    contest = Contest(f"memory-{weights}", "memory")
    over = Entry(ours, MIXED)
    return [
        Row(f"memory-{weights}", "peak memory / best base", contest, over, Entry(base, PLAIN)),
        Row(f"memory-{weights}-stock", "peak memory / stock", contest, over, Entry(stock, MIXED)),
    ]


def _noise_row(weights: str, contest: Contest, base: Entry) -> Row:
    """What a ratio of that contest is where both sides are the same: 1, and how far off."""
    twin = replace(base, side=replace(base.side, is_twin=True))
    return Row(f"noise-{weights}", "best base / best base in another process", contest, base, twin)


def _prompt_rows() -> list[Row]:
    contest = Contest("prompts", most_rounds=_SLOW)
    rows = []
    for length in (128, 1024):
        plain = Workload(streams=8, prompt_tokens=length)
        mixed = replace(plain, adapters=EIGHT)
        what = f"8 adapters mixed, 8 streams, prompts of {length} / best base"
        entries = Entry(OURS16, mixed), Entry(BASE16, plain)
        rows.append(Row(f"prompt-{length}", what, contest, *entries))
    return rows


def _truth_row(
    name: str,
    side: SideSpec,
    goal: float | None = None,
    workload: Workload = BETWEEN,
    rounds: int = _SLOW,
) -> Row:
    entry = Entry(side, workload)
    others = "adapters'" if workload == BETWEEN else "others"
    what = f"base requests among {others} / the same alone"
    return Row(name, what, Contest(name, "truth", rounds), entry, entry, goal)
