"""Reads the records of a data set: JSON Lines, JSON lists, CSV, Parquet, or what `datasets` loads.

Knows nothing about what a record means. JSON and CSV are read here and not by `datasets`, which
copies a set into its cache first and tells no line numbers.
"""

import csv
import io
import json
import re
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from training.data.problems import Place, Problems

Record = dict[str, Any]
Reader = Callable[[str, str, Problems], Iterator[tuple[Place, Any]]]

SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# OWNER/NAME, OWNER/NAME/CONFIG, each with :SPLIT in the words of `datasets`.
HUB_ID: Final = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::(.+))?")
BETWEEN: Final = re.compile(r"[\s,]*")
NOT_JSON: Final = "not JSON"
NESTED: Final = "nested too deeply"


def is_hub_id(source: str) -> bool:
    """Whether the text can be a data set of the hub, rather than a file's path."""
    return bool(HUB_ID.fullmatch(source)) and not (
        source.endswith(SUFFIXES) or source.startswith(".")
    )


def read_records(source: str, problems: Problems) -> Iterator[tuple[Place, Record]]:
    """Yield the records of a file, of a folder or of a data set of the hub."""
    path = Path(source)
    try:
        if path.is_dir() or (is_hub_id(source) and not path.exists()):
            yield from _read_with_datasets(source, problems)
        elif path.suffix == ".parquet":
            yield from _read_parquet(source, problems)
        else:
            yield from _read_text(path, problems)
    except OSError as error:
        problems.add(error.strerror or str(error), Place(source, 0))


def _read_text(path: Path, problems: Problems) -> Iterator[tuple[Place, Record]]:
    source, raw = str(path), path.read_bytes()
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        problems.add("UTF-16; save it as UTF-8", Place(source, 0))
        return
    # Bytes that are not UTF-8 become lone surrogates, and are found in the record that holds them.
    text = raw.removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape")
    for place, value in _pick_reader(path, text)(text, source, problems):
        if not isinstance(value, dict):
            problems.add("not a JSON object", place)
        elif fault := _find_unencodable(value):
            problems.add(fault, place)
        else:
            yield place, value


def _pick_reader(path: Path, text: str) -> Reader:
    if path.suffix in (".csv", ".tsv"):
        return _read_csv
    return _read_values if _spans_lines(text) else _read_lines


def _spans_lines(text: str) -> bool:
    """Whether values are a list, or objects printed over several lines, rather than lines."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith(("[", "{")):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return first.startswith("[") or _begins_with_value(text.lstrip())
    return isinstance(value, list) and not rest.strip()


def _begins_with_value(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(text: str, source: str, problems: Problems) -> Iterator[tuple[Place, Any]]:
    # Not splitlines(): a text may hold U+2028 as it is.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        place = Place(source, number)
        try:
            value = json.loads(line)
        except RecursionError:
            problems.add(NESTED, place)
        except ValueError:
            problems.add(NOT_JSON, place)
        else:
            yield place, value


def _read_values(text: str, source: str, problems: Problems) -> Iterator[tuple[Place, Any]]:
    """Yield the values of a list, or of a sequence of objects; ends at the first that is broken."""
    decode = json.JSONDecoder().raw_decode
    start = len(text) - len(text.lstrip())
    is_list = text.startswith("[", start)
    line, at = 1 + text.count("\n", 0, start), start + is_list
    while True:
        begin = BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches ""
        line += text.count("\n", at, begin)
        if begin == len(text) or (is_list and text[begin] == "]"):
            break
        try:
            value, at = decode(text, begin)
        except RecursionError:
            problems.add(NESTED, Place(source, line))
            return
        except ValueError as error:
            problems.add(NOT_JSON, Place(source, getattr(error, "lineno", line)))
            return
        yield Place(source, line), value
        line += text.count("\n", begin, at)
    if is_list and begin == len(text):
        problems.add("the list has no closing bracket: is the file complete?", Place(source, line))
    elif text[begin + 1 :].strip():
        problems.add("text after the list", Place(source, line))


def _find_unencodable(value: Record) -> str | None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        escaped = "\udc80" <= error.object[error.start] <= "\udcff"
        return "not UTF-8" if escaped else "half a surrogate pair in a text"
    return None


def _read_csv(text: str, source: str, problems: Problems) -> Iterator[tuple[Place, Record]]:
    # Its limit of 128 KiB a field is one of the process.
    csv.field_size_limit(sys.maxsize)
    header = text.partition("\n")[0]
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True
    )
    columns: list[str] | None = None
    number = 1
    try:
        for row in rows:
            place, number = Place(source, number), rows.line_num + 1
            if not row:
                continue
            if columns is None:
                columns = [name.strip() for name in row]
            elif len(row) != len(columns):
                problems.add("another number of fields than the header has", place)
            else:
                yield place, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        problems.add(f"not CSV: {error}", Place(source, number))


def _read_parquet(source: str, problems: Problems) -> Iterator[tuple[Place, Record]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(source) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield Place(source, number, "row"), _without_nulls(row)
    except ArrowException as error:
        problems.add(f"not Parquet: {error}", Place(source, 0))


def _read_with_datasets(source: str, problems: Problems) -> Iterator[tuple[Place, Record]]:
    import datasets
    from httpx import HTTPError

    folder = Path(source).is_dir()
    found = None if folder else HUB_ID.fullmatch(source)
    name, config, split = found.groups() if found else (source, None, None)
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config, split=split or "train")
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        place = Place(source, 0)
        if folder:
            problems.add(f"a folder that is no data set: {said}", place)
        else:
            problems.add(f"no such file, and no data set of the hub can be read: {said}", place)
        return
    for number, row in enumerate(rows, start=1):
        yield Place(source, number, "row"), _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """A table gives each struct all keys that any has; those without a value are left out."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
