"""Forms are read piece by piece, and a malformed one is refused with a code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.errors import CheckpointInvalid
from adapters.store.files import MIB
from server.admin.bodies import Publication
from server.admin.uploads import take_upload
from server.errors import InvalidRequest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TYPE = "multipart/form-data; boundary=xyz"


def part(value: bytes, disposition: str, *headers: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *headers])
    return b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n"


def field(name: str, value: str) -> bytes:
    return part(value.encode(), f'name="{name}"')


def file(name: str, content: bytes = b"x") -> bytes:
    return part(content, f'name="file"; filename="{name}"')


def take(folder: Path, *parts: bytes, end: bytes = b"--xyz--\r\n", step: int = 1000) -> Publication:
    body = b"".join(parts) + end
    pieces = (body[start : start + step] for start in range(0, len(body), step))
    return take_upload(TYPE, pieces, folder)


def refused(folder: Path, *parts: bytes, **options: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        take(folder, *parts, **options)
    return caught.value.code


NAME = field("name", "orders")


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100_000])
def test_a_form_is_the_same_however_it_is_split_into_chunks(tmp_path, step) -> None:
    # Near-boundaries belong to the file.
    content = b"\r\n--xy\r\n--xyzz\r\r\n-" + bytes(range(256)) + b"\r\n"
    files = (file(CONFIG, b"{}"), file(WEIGHTS, content), file("lorry.json", b""))
    wanted = take(tmp_path, *files, NAME, field("alias", "a"), field("alias", "b"), step=step)
    assert wanted == Publication(name="orders", aliases=["a", "b"])
    assert (tmp_path / WEIGHTS).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS, "lorry.json"]
    assert (tmp_path / "lorry.json").read_bytes() == b""


def test_an_empty_alias_moves_none_and_no_alias_means_stable(tmp_path) -> None:
    assert take(tmp_path, NAME, field("alias", "")).aliases == []
    assert take(tmp_path, NAME).aliases == ["stable"]


def test_other_files_are_skipped_and_a_pickle_is_kept_empty(tmp_path) -> None:
    take(tmp_path, NAME, file("README.md", b"r" * 5000), file("adapter_model.bin", b"p" * 5000))
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [
        ("adapter_model.bin", 0)
    ]


def test_a_file_name_that_is_not_plain_is_refused_and_not_written(tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    names = ["", "..", "../escape", "/etc/passwd", "a/b", "a\\b", ".hidden", "x" * 129, "é"]
    names.append(f"{CONFIG}\0")
    codes = {name: refused(folder, NAME, file(name)) for name in names}
    assert codes == dict.fromkeys(names, "bad_file_name")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "adapter_model.bin"])
def test_a_second_file_of_one_name_is_refused(tmp_path, name) -> None:
    assert refused(tmp_path, NAME, file(name), file(name, b"other")) == "bad_file_name"


@pytest.mark.parametrize(
    "parts",
    [
        [part(b"x", 'name="file"')],  # a file without a filename is an unknown field
        [NAME, field("path", "/etc")],
        [NAME, NAME],
        [file(CONFIG)],
        [field("name", "x" * 1025)],
        [part(b"\xff", 'name="name"')],
        [part(b"x", 'filename="adapter_config.json"')],
        [part(b"x", "")],
        [part(b"x", 'name="name"', "x-long: " + "y" * 2000)],
        [part(b"x", 'name="name"', *(f"x-{number}: y" for number in range(20)))],
        [b"--xyz\r\nno colon\r\n\r\n"],
        [b"no boundary at all"],
    ],
)
def test_a_malformed_form_is_refused(tmp_path, parts) -> None:
    assert refused(tmp_path, *parts) == "invalid_request"


@pytest.mark.parametrize("each", [field("alias", "a"), file("README.md")])
def test_a_form_with_too_many_parts_is_not_read_to_its_end(tmp_path, each) -> None:
    read = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield each

    with pytest.raises(InvalidRequest, match="at most 32 parts"):
        take_upload(TYPE, pieces(), tmp_path)
    assert len(read) < 40


@pytest.mark.parametrize("end", [b"", b"--xyz\r\n", b"--xyz-"])
def test_an_incomplete_form_is_refused(tmp_path, end) -> None:
    assert refused(tmp_path, NAME, file(WEIGHTS), end=end) == "invalid_request"


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"{TYPE}{'z' * 300}"])
def test_a_form_needs_a_boundary_of_a_valid_length(tmp_path, content_type) -> None:
    with pytest.raises(InvalidRequest):
        take_upload(content_type, [NAME], tmp_path)


def test_a_file_that_is_too_large_is_cut_off(tmp_path) -> None:
    with pytest.raises(CheckpointInvalid) as caught:
        take(tmp_path, NAME, file(CONFIG, bytes(MIB + 1)), step=65536)
    assert caught.value.problems[0].code == "file_too_large"
    assert (tmp_path / CONFIG).stat().st_size <= MIB
