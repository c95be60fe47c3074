"""Evaluations of versions, and the gate that an alias's new target must pass.

Figures are recorded as they were measured and never changed; they go only with their version.
Knows nothing of how answers are judged (training/evaluation does that).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, insert, select

from adapters.catalog import history, schema
from adapters.catalog.versions import as_utc
from adapters.errors import EvaluationInvalid, GateRefused, quote

BASE = "base"
OFFLINE, SERVER = "offline", "server"
MAX_METRIC = 200
MAX_COMPARISONS = 8
BETTER = "train a better version, or force the move (--force; over HTTP `force`)"


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over the examples, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another's score on the same examples (`against`: `base` or NAME@VERSION), and how much
    better this version is; `exceeds_noise` if the interval of that excludes 0."""

    against: str
    score: Figure
    difference: Figure
    exceeds_noise: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a version answers a set of examples by one metric, from 0 to 1.

    `metric_digest` is that of the file which the metric reads, if it reads one. `by` is `offline`
    or `server`: who computed the answers. Lengths are in tokens; `cut` counts the answers that
    `max_tokens` ended. The first comparison is with the base.
    """

    metric: str
    metric_digest: str | None
    data_digest: str
    examples: int
    score: Figure
    comparisons: tuple[Comparison, ...]
    by: str
    max_tokens: int
    median_tokens: float
    cut: int

    @property
    def base(self) -> Comparison:
        """The comparison with the base."""
        return self.comparisons[0]

    @property
    def same(self) -> tuple[str, str | None, str]:
        """Evaluations that agree in this can be compared."""
        return self.metric, self.metric_digest, self.data_digest


@dataclass(frozen=True, slots=True)
class Recorded(Evaluation):
    """An evaluation in the catalog."""

    judged_at: datetime
    actor: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document."""
        return asdict(self) | {
            "judged_at": self.judged_at.isoformat(),
            "comparisons": [asdict(each) for each in self.comparisons],
        }


@dataclass(frozen=True, slots=True)
class Gate:
    """The metric by which an alias's new target must be better; `forced`: it moves all the same,
    and the event says why it should not have."""

    metric: str
    forced: bool = False


Evaluations = Mapping[tuple[str, int], Sequence[Recorded]]  # by name and version, newest last


def check_evaluation(found: Evaluation) -> None:
    """Raises EvaluationInvalid for figures that can't be of a score from 0 to 1."""
    compared = found.comparisons
    differences = [each.difference for each in compared]
    scores = [found.score, *(each.score for each in compared)]
    problem = None
    if not 0 < len(found.metric) <= MAX_METRIC or not found.metric.isprintable():
        problem = "its metric has no name"
    elif not compared or compared[0].against != BASE or len(compared) > MAX_COMPARISONS:
        problem = "its first comparison is not with the base"
    elif not all(0 <= each.low <= each.mean <= each.high <= 1 for each in scores):
        problem = "a score is not from 0 to 1 and inside its interval"
    elif not all(-1 <= each.low <= each.mean <= each.high <= 1 for each in differences):
        problem = "a difference is not from -1 to 1 and inside its interval"
    elif found.examples < 1 or not 0 <= found.cut <= found.examples or found.max_tokens < 1:
        problem = "its counts are out of range"
    elif found.by not in (OFFLINE, SERVER):
        problem = f"its answers are by {quote(found.by)}"
    if problem:
        raise EvaluationInvalid(f"this is no evaluation: {problem}", "record what was measured")


def record(
    connection: Connection, name: str, number: int, found: Evaluation, actor: str
) -> Recorded:
    """Add an evaluation to an existing version, with an event."""
    now = datetime.now(UTC)
    facts = msgspec.to_builtins(found)
    row = {"name": name, "version": number, "judged_at": now, "actor": actor}
    connection.execute(insert(schema.evaluations).values(row, facts=facts))
    detail = {
        "version": number,
        "metric": found.metric,
        "score": found.score.mean,
        "base_score": found.base.score.mean,
        "examples": found.examples,
        "data_digest": found.data_digest,
        "by": found.by,
    }
    history.record(connection, actor, history.EVALUATED, name, detail)
    return _recorded(facts, now, actor)


def select_evaluations(connection: Connection, *wanted: ColumnElement[bool]) -> Evaluations:
    """Evaluations by name and version, the newest last."""
    table = schema.evaluations
    query = select(table).where(*wanted).order_by(table.c.id)
    found: dict[tuple[str, int], list[Recorded]] = {}
    for row in connection.execute(query):
        recorded = _recorded(row.facts, as_utc(row.judged_at), row.actor)
        found.setdefault((row.name, row.version), []).append(recorded)
    return found


def check_gate(
    name: str,
    number: int,
    metric: str,
    evaluations: Mapping[int, Sequence[Evaluation]],
    targets: Iterable[int],
) -> None:
    """Raises GateRefused unless the newest evaluation of a version by a metric shows that it is
    better than the base, and not worse than any of the alias's targets on the same data.

    `evaluations` are those of the name, by version, the newest last.
    """
    label = f"{name}@{number}"
    found = _newest(evaluations.get(number, ()), lambda each: each.metric == metric)
    if found is None:
        known = sorted({each.metric for each in evaluations.get(number, ())})
        has = f" (it has some by {', '.join(known)})" if known else ""
        raise GateRefused(
            f"{label} has no evaluation by {metric}{has}",
            f"make one: lorry evaluate {label} --data FILE --metric {metric}",
        )
    score, base = found.score.mean, found.base.score.mean
    if score <= base:
        raise GateRefused(
            f"{label} has {score:.4f} by {metric}, which is not better than the base's {base:.4f}",
            BETTER,
        )
    for target in sorted({*targets} - {number}):
        other = f"{name}@{target}"
        before = _newest(evaluations.get(target, ()), lambda each: each.same == found.same)
        if before is None:
            raise GateRefused(
                f"{other}, which the alias points at, has no evaluation by {metric} on the data of "
                f"the newest one of {label} ({found.data_digest[:19]})",
                f"make both: lorry evaluate {label} --against {other} --data FILE --metric "
                f"{metric}",
            )
        if score < before.score.mean:
            raise GateRefused(
                f"{label} has {score:.4f} by {metric}, which is worse than the "
                f"{before.score.mean:.4f} of {other}, which the alias points at",
                BETTER,
            )


def _newest(evaluations: Sequence[Evaluation], wanted: Any) -> Evaluation | None:
    return next(filter(wanted, reversed(evaluations)), None)


def _recorded(facts: Mapping[str, Any], judged_at: datetime, actor: str) -> Recorded:
    return msgspec.convert({**facts, "judged_at": judged_at, "actor": actor}, Recorded)
