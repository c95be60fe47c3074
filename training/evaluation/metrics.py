"""What a right answer is: the metrics, and the text that names one in recipes and on command lines.

    exact-match          the answer is the expected text, but for white space around it
    contains             the expected text stands in the answer
    json-equal           both are JSON with the same value
    json-schema:FILE     the answer is JSON that the schema allows, whatever is expected
    sql-parses[:DIALECT] the answer is one statement of SQL, whatever is expected
    FILE.py:FUNCTION     the user's own function(answer, expected), a bool or a number from 0 to 1

Knows nothing of models and of data sets but their places.
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.data.problems import Place, name_places
from training.errors import InputError

Judge = Callable[[str, str], float]

DEFAULT_METRIC: Final = "exact-match"
SCHEMA: Final = "json-schema"
SQL: Final = "sql-parses"
CHOICES: Final = (
    "exact-match, contains, json-equal, json-schema:FILE, sql-parses[:DIALECT] or FILE.py:FUNCTION"
)
SHOWN_TEXT: Final = 60


class MetricInvalid(InputError):
    """A text that names no metric, or whose file can't be used."""

    code = "metric_invalid"


class MetricFailed(InputError):
    """An example on which a metric has no answer: bad data for it, or the user's function."""

    code = "metric_failed"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `digest` is that of the file which it reads, so that figures by different files
    of one name are not compared."""

    name: str
    judge: Judge
    digest: str | None = None

    def score(self, answer: str, expected: str) -> float:
        """From 0 to 1, higher is better; raises MetricFailed."""
        return self.judge(answer, expected)


def find_metric(spec: str, folder: Path, *, may_read_files: bool = True) -> Metric:
    """The metric that a text names; its file is relative to `folder`. Raises MetricInvalid.

    Without `may_read_files`, for texts that came in a request, those that name files are refused.
    """
    if spec in SIMPLE:
        return Metric(spec, SIMPLE[spec])
    kind, colon, rest = spec.partition(":")
    if kind == SQL and (rest or not colon):
        return Metric(spec, _sql_judge(rest))
    path, _, function = spec.rpartition(":")
    is_schema, is_code = kind == SCHEMA and rest, path.endswith(".py") and function
    if not (is_schema or is_code):
        raise MetricInvalid(f"{spec!r} is no metric", f"give {CHOICES}")
    if not may_read_files:
        raise MetricInvalid(f"{spec!r} names a file", "give a metric that needs none")
    file = folder / (rest if is_schema else path)
    source = _read(file)
    digest = f"sha256:{hashlib.sha256(source).hexdigest()}"
    if is_schema:
        return Metric(f"{SCHEMA}:{file.name}", _schema_judge(source, file), digest)
    return Metric(f"{file.name}:{function}", _function_judge(file, function), digest)


def score_answers(
    metric: Metric, answers: Sequence[str], expected: Sequence[str], places: Sequence[Place]
) -> list[float]:
    """The score of each answer; raises MetricFailed, which names the example's place."""
    scores = []
    for answer, text, place in zip(answers, expected, places, strict=True):
        try:
            scores.append(metric.score(answer, text))
        except MetricFailed as error:
            raise MetricFailed(f"{name_places([place])}: {error.message}", error.hint) from error
    return scores


def _is_same_text(answer: str, expected: str) -> float:
    return float(answer.strip() == expected.strip())


def _contains(answer: str, expected: str) -> float:
    return float(expected.strip() in answer)


def _is_same_json(answer: str, expected: str) -> float:
    try:
        wanted = _parse_json(expected)
    except ValueError as error:
        raise MetricFailed(
            f"the expected answer {_shorten(expected)} is not JSON",
            "correct the data, or take another metric",
        ) from error
    try:
        return float(_is_equal(_parse_json(answer), wanted))
    except ValueError:
        return 0.0


SIMPLE: Final[dict[str, Judge]] = {
    DEFAULT_METRIC: _is_same_text,
    "contains": _contains,
    "json-equal": _is_same_json,
}


def _parse_json(text: str) -> Any:
    """Raises ValueError."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _is_equal(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, but unlike in Python no boolean equals a number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other)


def _schema_judge(source: bytes, file: Path) -> Judge:
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        schema = json.loads(source)
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (ValueError, RecursionError, TypeError, SchemaError) as error:
        said = error.message if isinstance(error, SchemaError) else "not JSON"
        raise MetricInvalid(f"{file}: no JSON schema: {said}", "correct the file") from error
    # With a registry of its own no reference is fetched from the network.
    validator = kind(schema, registry=Registry())

    def judge(answer: str, _: str) -> float:
        try:
            value = _parse_json(answer)
        except ValueError:
            return 0.0
        try:
            return float(validator.is_valid(value))
        except Unresolvable as error:
            raise MetricFailed(
                f"{file}: {error}", "put what the schema refers to into the same file"
            ) from error

    return judge


def _sql_judge(dialect: str) -> Judge:
    """By sqlglot, which knows some thirty dialects; SQLite's own parser knows one.

    Built to translate rather than to check, sqlglot reads `two lamps` as a column with an alias,
    and leaves statements that it does not know as they are: neither counts as SQL here.
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    if dialect and dialect not in sqlglot.Dialect.classes:
        known = ", ".join(sorted(filter(None, sqlglot.Dialect.classes)))
        raise MetricInvalid(f"{dialect!r} is no dialect of SQL that sqlglot knows", f"give {known}")
    statements = (exp.Query, exp.DML, exp.DDL, exp.Drop, exp.Alter)

    def judge(answer: str, _: str) -> float:
        try:
            parsed = [each for each in sqlglot.parse(answer, read=dialect or None) if each]
        except (SqlglotError, RecursionError):
            return 0.0
        return float(len(parsed) == 1 and isinstance(parsed[0], statements))

    return judge


def _function_judge(file: Path, name: str) -> Judge:
    function = getattr(_load_module(file), name, None)
    if not callable(function):
        raise MetricInvalid(f"{file}: has no function {name}", "name one that it defines")

    def judge(answer: str, expected: str) -> float:
        called = f"{file.name}:{name} for the expected answer {_shorten(expected)}"
        try:
            score = function(answer, expected)
        except Exception as error:  # the user's code may raise anything
            said = f"{type(error).__name__}: {error}"
            raise MetricFailed(f"{called} raised {said}", "correct the function") from error
        is_number = isinstance(score, int | float) or hasattr(score, "__float__")
        value = float(score) if is_number else math.nan
        if not 0 <= value <= 1:
            raise MetricFailed(
                f"{called} returned {score!r}", "return a bool or a number from 0 to 1"
            )
        return value

    return judge


def _load_module(file: Path) -> Any:
    found = importlib.util.spec_from_file_location(f"lorry_metric_{file.stem}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise MetricInvalid(f"{file}: importing it raised {said}", "correct the file") from error
    return module


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MetricInvalid(
            f"{file}: {error.strerror or error}", "give the path of the metric's file"
        ) from error


def _shorten(text: str) -> str:
    return repr(text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 3]}...")
