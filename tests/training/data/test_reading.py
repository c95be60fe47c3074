"""Files as people have them: JSON Lines, lists, CSV, Parquet, folders that `datasets` reads."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import config
from pyarrow.parquet import write_table

from training.data.problems import Problems
from training.data.reading import is_hub_id, read_records

ONE = {"prompt": "a", "completion": "b"}
TWO = {"prompt": "c", "completion": "d\u2028e"}


def read(path: Path, content: str | bytes) -> tuple[list[tuple[int, Any]], str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_source(str(path))


def read_source(source: str) -> tuple[list[tuple[int, Any]], str]:
    problems = Problems()
    found = [(place.number, record) for place, record in read_records(source, problems)]
    return found, str(problems).replace(source, "FILE")


def jsonl(*records: Any, newline: str = "\n") -> str:
    return newline.join(json.dumps(record, ensure_ascii=False) for record in records)


@pytest.mark.parametrize(
    "content",
    [
        jsonl(ONE, TWO),
        jsonl(ONE, TWO, newline="\r\n") + "\r\n",
        "\ufeff" + jsonl(ONE, TWO),
        json.dumps([ONE, TWO]),
        "\ufeff" + json.dumps([ONE, TWO]),
    ],
    ids=["lines", "CRLF", "BOM", "list", "list with BOM"],
)
def test_the_same_records_are_read_from_each_form(tmp_path: Path, content: str) -> None:
    found, said = read(tmp_path / "set.json", content)
    assert [record for _, record in found] == [ONE, TWO]
    assert said == ""


def test_a_printed_list_is_read_with_the_line_of_each_record(tmp_path: Path) -> None:
    found, said = read(tmp_path / "set.json", "\n" + json.dumps([ONE, TWO], indent=2))
    assert (found, said) == ([(3, ONE), (7, TWO)], "")


def test_objects_printed_over_several_lines_are_read(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(record, indent=1) for record in (ONE, TWO))
    found, said = read(tmp_path / "set.jsonl", text)
    assert (found, said) == ([(1, ONE), (5, TWO)], "")


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "set.jsonl", "\n\n" + jsonl(ONE) + "\n\n" + jsonl(TWO))
    assert [number for number, _ in found] == [3, 5]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "not JSON"),
        ('{"n": ' + "1" * 5000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"prompt": "\\ud800"}', "half a surrogate pair in a text"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_broken_line_is_named_and_the_others_are_read(
    tmp_path: Path, line: str | bytes, cause: str
) -> None:
    raw = line.encode() if isinstance(line, str) else line
    content = b"\n".join([jsonl(ONE).encode(), raw, jsonl(TWO).encode()])
    found, said = read(tmp_path / "set.jsonl", content)
    assert [number for number, _ in found] == [1, 3]
    assert said == f"FILE: line 2: {cause}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "line 1: nested too deeply"),
        ('[{"a": 1},\n{"a": 2}', "line 2: the list has no closing bracket: is the file complete?"),
        ('[\n{"a": 1},\n{"a": ]', "line 3: not JSON"),
        ('[{"a": 1}\n]\nx', "line 2: text after the list"),
        ('[{"a": 1}, 7]', "line 1: not a JSON object"),
        (jsonl(ONE).encode("utf-16"), "UTF-16; save it as UTF-8"),
    ],
    ids=lambda value: str(value)[-20:],
)
def test_a_broken_list_is_named_by_its_line(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    assert read(tmp_path / "set.json", content)[1] == f"FILE: {said}"


def test_many_problems_of_one_cause_are_one_with_a_count(tmp_path: Path) -> None:
    _, said = read(tmp_path / "set.jsonl", "{\n" * 25 + jsonl(ONE) + "\n[]\n")
    numbers = ", ".join(str(number) for number in range(1, 21))
    assert said == f"FILE: lines {numbers} and 5 more: not JSON | line 27: not a JSON object"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_keeps_quoted_line_ends_and_names_the_first_line_of_a_row(
    tmp_path: Path, separator: str
) -> None:
    rows = ["prompt,completion", 'a,"b\nc"', "only one", 'd,"' + "e" * 200_000 + '"', ""]
    text = "\ufeff" + "\r\n".join(row.replace(",", separator) for row in rows)
    found, said = read(tmp_path / "set.csv", text)
    assert found == [
        (2, {"prompt": "a", "completion": "b\nc"}),
        (5, {"prompt": "d", "completion": "e" * 200_000}),
    ]
    assert said == "FILE: line 4: another number of fields than the header has"


def test_csv_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    _, said = read(tmp_path / "set.csv", 'prompt,completion\na,"b\n')
    assert said.startswith("FILE: line 2: not CSV: ")


def test_parquet_is_read_without_the_keys_that_a_row_lacks(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user"}]}, {"messages": [{"role": "tool", "name": "f"}]}]
    path = tmp_path / "set.parquet"
    write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_source(str(path)) == ([(1, rows[0]), (2, rows[1])], "")


def test_what_is_not_parquet_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path / "set.parquet", "PAR")[1].startswith("FILE: not Parquet: ")


def test_a_folder_or_an_id_is_read_by_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` takes OWNER/NAME of the working folder as it takes one of the hub."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "acme/faq"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(jsonl(ONE, TWO))
    (folder / "train.jsonl").write_text(jsonl(TWO))
    assert read_source("acme/faq") == ([(1, TWO)], "")


def test_what_is_neither_file_nor_data_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert read_source(str(tmp_path / "absent.jsonl"))[1] == "FILE: No such file or directory"
    assert read_source("acme/absent")[1] == (
        "FILE: no such file, and no data set of the hub can be read: Couldn't reach the hub"
    )


def test_the_config_and_split_of_an_id_reach_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[object] = []

    def load(*arguments: object, split: str) -> list[object]:
        asked.append((*arguments, split))
        return []

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("a/b", "a/b:test", "a/b/main:train[:90%]"):
        read_source(source)
    assert asked == [
        ("a/b", None, "train"),
        ("a/b", None, "test"),
        ("a/b", "main", "train[:90%]"),
    ]


def test_an_id_is_told_from_a_path() -> None:
    assert all(map(is_hub_id, ("databricks/databricks-dolly-15k", "a/b:test", "a/b/c")))
    paths = ("train.jsonl", "data/train.jsonl", "./data/train", "/data/train", "../a/b", "train")
    assert not any(map(is_hub_id, paths))
