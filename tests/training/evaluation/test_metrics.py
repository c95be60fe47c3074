"""Metrics on right, wrong and hostile answers, and the sentences of those that can't judge."""

import json
from pathlib import Path

import pytest

from training.data.problems import Place
from training.evaluation.metrics import MetricFailed, MetricInvalid, find_metric, score_answers

SCHEMA = {
    "type": "object",
    "required": ["item"],
    "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
    "additionalProperties": False,
}


def score(spec: str, answer: str, expected: str, folder: Path = Path()) -> float:
    return find_metric(spec, folder).score(answer, expected)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "order.json"
    file.write_text(json.dumps(SCHEMA))
    return file


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "import numpy\n"
        "LIMIT = 3\n"
        "def share(answer, expected): return numpy.float64(len(answer) / len(expected))\n"
        "def same(answer, expected): return answer == expected\n"
        "def broken(answer, expected): return {}[answer]\n"
        "def talks(answer, expected): return 'fine'\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "answer", "expected", "right"),
    [
        ("exact-match", " two lamps\n", "two lamps", 1),
        ("exact-match", "Two lamps", "two lamps", 0),
        ("contains", "here: two lamps.", " two lamps ", 1),
        ("contains", "two", "two lamps", 0),
        ("json-equal", '{"b": [1.0], "a": null}', '{"a": null, "b": [1]}', 1),
        ("json-equal", "true", "1", 0),
        ("json-equal", '{"a": [false]}', '{"a": [0]}', 0),
        ("json-equal", "[1, 2]", "[1]", 0),
        ("json-equal", '{"a": 1, "b": 2}', '{"a": 1}', 0),
        ("json-equal", '```json\n{"a": 1}\n```', '{"a": 1}', 0),
        ("json-equal", "NaN", "1", 0),
        ("json-equal", "[" * 100_000, "1", 0),
        ("json-equal", "", "1", 0),
        ("sql-parses", "SELECT a FROM t WHERE b = 'x'", "", 1),
        ("sql-parses", "INSERT INTO t (a) VALUES (1);", "", 1),
        ("sql-parses", "CREATE TABLE t (a INT)", "", 1),
        ("sql-parses", "WITH x AS (SELECT 1) SELECT * FROM x", "", 1),
        ("sql-parses", "UPDATE t SET a = 1 WHERE b = 2", "", 1),
        ("sql-parses", "DELETE FROM t", "", 1),
        ("sql-parses", "DROP TABLE t", "", 1),
        ("sql-parses", "ALTER TABLE t ADD COLUMN b INT", "", 1),
        ("sql-parses", "SELECT a FROM t WHERE", "", 0),
        ("sql-parses", "SELECT FROM WHERE", "", 0),
        ("sql-parses", "SELECT 'open", "", 0),
        ("sql-parses", "two lamps", "", 0),
        ("sql-parses", "Sorry", "", 0),
        ("sql-parses", "SHOW me the lamps", "", 0),
        ("sql-parses", "SELECT 1; SELECT 2", "", 0),
        ("sql-parses", "(" * 5_000, "", 0),
        ("sql-parses", "", "", 0),
        ("sql-parses:postgres", "SELECT a::int FROM t", "", 1),
    ],
)
def test_scores(spec: str, answer: str, expected: str, right: int) -> None:
    assert score(spec, answer, expected) == right


def test_a_schema_judges_whatever_was_expected(schema: Path) -> None:
    metric = find_metric("json-schema:order.json", schema.parent)
    assert metric.name == "json-schema:order.json"
    assert [metric.score(answer, "") for answer in ('{"item": "lamp"}', "{}", "no", "NaN")] == [
        *(1, 0, 0, 0)
    ]


def test_the_file_of_a_metric_is_part_of_what_it_is(schema: Path) -> None:
    before = find_metric("json-schema:order.json", schema.parent)
    schema.write_text("{}")
    after = find_metric(f"json-schema:{schema}", Path("elsewhere"))
    assert before.name == after.name
    assert before.digest != after.digest
    assert find_metric("contains", schema.parent).digest is None


def test_no_schema_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "far.json").write_text('{"$ref": "http://127.0.0.1:9/schema.json"}')
    with pytest.raises(MetricFailed, match="put what the schema refers to into the same file"):
        score("json-schema:far.json", "{}", "", tmp_path)


def test_own_functions_give_bools_and_numbers(own: Path) -> None:
    assert score("mine.py:share", "ab", "abcd", own) == 0.5
    assert score("mine.py:same", "a", "a", own) == 1.0
    assert find_metric(f"{own}/mine.py:same", Path()).name == "mine.py:same"


@pytest.mark.parametrize(
    ("function", "said"),
    [("broken", "raised KeyError: 'a'"), ("talks", "returned 'fine'"), ("share", "returned")],
)
def test_a_function_that_fails_names_the_example(own: Path, function: str, said: str) -> None:
    metric = find_metric(f"mine.py:{function}", own)
    places = [Place("heldout.jsonl", 7)]
    with pytest.raises(
        MetricFailed, match=rf"^heldout\.jsonl: line 7: mine\.py:{function} .*{said}"
    ):
        score_answers(metric, ["a" if function != "share" else "abc"], ["b"], places)


def test_json_that_was_expected_and_is_none_is_the_datas_fault() -> None:
    metric = find_metric("json-equal", Path())
    with pytest.raises(MetricFailed, match="line 2: the expected answer 'two lamps' is not JSON"):
        score_answers(metric, ["1", "1"], ["1", "two lamps"], [Place("a", 1), Place("a", 2)])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("exact", "'exact' is no metric; give exact-match, contains"),
        ("json-schema:", "is no metric"),
        ("mine.py:", "is no metric"),
        ("sql-parses:", "is no metric"),
        ("sql-parses:cobol", "'cobol' is no dialect of SQL"),
        ("json-schema:absent.json", "absent.json: No such file"),
        ("absent.py:f", "absent.py: No such file"),
        ("mine.py:absent", "has no function absent"),
        ("mine.py:LIMIT", "has no function LIMIT"),
        ("bad.py:f", "importing it raised SyntaxError"),
        ("ends.py:f", "importing it raised SystemExit: 3"),
        ("bad.json:f", "is no metric"),
        ("json-schema:bad.py", "no JSON schema: not JSON"),
        ("json-schema:wrong.json", "no JSON schema: 'thing' is not valid"),
    ],
)
def test_what_is_no_metric_is_one_sentence(own: Path, spec: str, said: str) -> None:
    (own / "bad.py").write_text("def f(:\n")
    (own / "ends.py").write_text("raise SystemExit(3)\n")
    (own / "wrong.json").write_text('{"type": "thing"}')
    with pytest.raises(MetricInvalid) as raised:
        find_metric(spec, own)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["mine.py:same", "json-schema:mine.py"])
def test_a_request_may_name_no_file(own: Path, spec: str) -> None:
    with pytest.raises(MetricInvalid, match="names a file"):
        find_metric(spec, own, may_read_files=False)
    assert find_metric("contains", own, may_read_files=False).name == "contains"
