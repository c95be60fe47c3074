"""What `lorry data check` reports: kinds, counts, tokens, truncation, duplicates and leaks."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adapters.models import silent
from training.base import find_tokenizer
from training.data.problems import SHOWN_CAUSES, SHOWN_PLACES, Place, name_places
from training.data.sets import DataSet, find_leaks, inspect_set
from training.data.tokens import Encoded, Tokenizer, encode_set, load_tokenizer
from training.progress import Report as Say

PERCENTILES: Final = (("p50", 0.5), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Report:
    """A set as it was found; `leaks` are the places in the other set with the same prompts."""

    data: DataSet
    other: DataSet | None
    leaks: list[Place]
    tokenizer: Tokenizer | None
    encoded: Encoded | None

    @property
    def ok(self) -> bool:
        return not any(self._problems())

    def facts(self) -> dict[str, Any]:
        """The report as one JSON document."""
        facts: dict[str, Any] = {
            "sources": list(self.data.sources),
            "ok": self.ok,
            "records": self.data.records,
            "examples": len(self.data.examples),
            "forms": dict(self.data.forms),
            "turns": self._turns(),
            "unused": dict(self.data.unused),
            "duplicates": _count(self.data.repeats()),
            "problems": self.data.problems.facts(),
            "warnings": self._warnings(),
        }
        if self.other:
            facts["leaks"] = _count(self.leaks)
            facts["problems"] += self.other.problems.facts()
        if self.encoded:
            facts["tokens"] = _spread(self.encoded.lengths)
            facts["answer_tokens"] = _spread(self.encoded.answer_lengths)
            facts["max_length"] = self.encoded.max_length
            facts["truncated"] = _count(self.encoded.cut)
            facts["filled_by_prompt"] = _count(self.encoded.filled)
            facts["problems"] += self.encoded.problems.facts()
        return facts

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        facts = self.facts()
        yield f"{', '.join(self.data.sources)}"
        yield f"records     {facts['records']:,} ({_name_counts(self.data.forms)})"
        yield f"examples    {facts['examples']:,}, {facts['duplicates']['count']:,} repeat others"
        if facts["turns"]:
            yield f"turns       {_name_counts(facts['turns'])}"
        if self.encoded and self.encoded.lengths:
            for title, key in (("tokens", "tokens"), ("of answers", "answer_tokens")):
                spread = facts[key]
                yield (
                    f"{title:11} {spread['total']:,}: p50 {spread['p50']:,}, "
                    f"p99 {spread['p99']:,}, max {spread['max']:,}"
                )
            yield (
                f"max_length  {self.encoded.max_length}: {len(self.encoded.cut):,} answers cut, "
                f"{len(self.encoded.filled):,} cut to nothing"
            )
        if self.other:
            yield f"leaks       {len(self.leaks):,} of {len(self.other.examples):,} prompts"
        yield from facts["warnings"]
        problems = list(self._problems())
        yield from (f"error: {problem}" for problem in problems[:SHOWN_CAUSES])
        if len(problems) > SHOWN_CAUSES:
            yield f"error: and {len(problems) - SHOWN_CAUSES:,} more"
        yield "ok" if self.ok else "not ok: correct the errors before training"

    def _problems(self) -> Iterator[str]:
        yield from self.data.problems
        if self.encoded:
            yield from self.encoded.problems
        if self.other:
            yield from self.other.problems
        if self.leaks:
            yield f"{name_places(self.leaks)}: the same prompts as in the set"

    def _warnings(self) -> list[str]:
        said = self.data.warnings() if self.data.examples else []
        if self.encoded and self.tokenizer:
            said += self.encoded.warnings(self.tokenizer)
        return said

    def _turns(self) -> dict[str, int]:
        """Turns by role, up to the last answer of each chat."""
        chats = {example.place: example for example in self.data.examples}
        counts: Counter[str] = Counter()
        for chat in chats.values():
            if not isinstance(chat.prompt, str):
                counts.update(turn["role"] for turn in (*chat.prompt, *chat.completion))
        return dict(counts)


def check_data(
    sources: Sequence[str],
    base: str | None,
    against: Sequence[str],
    max_length: int,
    method: str = "sft",
    say: Say = silent,
) -> Report:
    """Read and count a set, on a base if there is one; raises BaseInvalid or an AdapterError."""
    data = inspect_set(sources, method)
    other = inspect_set(against, method) if against else None
    tokenizer = load_tokenizer(find_tokenizer(base, say), base) if base else None
    encoded = encode_set(data, tokenizer, max_length) if tokenizer and data.examples else None
    leaks = find_leaks(data, other) if other else []
    return Report(data, other, leaks, tokenizer, encoded)


def _count(places: list[Place]) -> dict[str, Any]:
    return {"count": len(places), "places": name_places(places[:SHOWN_PLACES])}


def _spread(lengths: list[int]) -> dict[str, int]:
    """Total, median, 99th percentile (nearest rank) and maximum."""
    ranked = sorted(lengths) or [0]
    at = {name: math.ceil(share * len(ranked)) - 1 for name, share in PERCENTILES}
    return {
        "total": sum(ranked),
        **{name: ranked[index] for name, index in at.items()},
        "max": ranked[-1],
    }


def _name_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
