"""An adapter's folder as a form to be sent: its own files only, read from disk as they are sent.

Knows nothing of who takes it.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from adapters.errors import CheckpointInvalid, Problem
from adapters.sources import FILES
from adapters.store.files import COPY_BYTES, SERVED, FileRefused, open_adapter_file


class Content(NamedTuple):
    """The body of a request; `pieces` can be read once."""

    type: str
    length: int
    pieces: Iterable[bytes]


class _Part(NamedTuple):
    head: bytes
    name: str
    file: BinaryIO | None = None
    size: int = 0


@contextmanager
def upload_form(folder: Path, fields: Sequence[tuple[str, str]]) -> Iterator[Content]:
    """The fields and the files of a folder; raises CheckpointInvalid for files that can't be read.

    They are open for the length of the block. One that shrinks meanwhile raises when it is read.
    """
    with ExitStack() as stack:
        files, problems = {}, []
        for name in FILES:
            try:
                files[name] = stack.enter_context(open_adapter_file(folder, name))
            except FileRefused as refused:
                if name in SERVED or refused.problem.code != "file_missing":
                    problems.append(refused.problem)
        if problems:
            raise CheckpointInvalid(problems)
        boundary = secrets.token_hex(16)
        parts = [
            _Part(_head(boundary, f'name="{name}"') + value.encode(), name)
            for name, value in fields
        ]
        for name, file in files.items():
            head = _head(boundary, f'name="file"; filename="{name}"')
            parts.append(_Part(head, name, file, file.seek(0, 2)))
            file.seek(0)
        end = f"--{boundary}--\r\n".encode()
        length = sum(len(part.head) + part.size + len(b"\r\n") for part in parts) + len(end)
        yield Content(f"multipart/form-data; boundary={boundary}", length, _pieces(parts, end))


def _head(boundary: str, disposition: str) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()


def _pieces(parts: Sequence[_Part], end: bytes) -> Iterator[bytes]:
    for part in parts:
        yield part.head
        left = part.size
        while part.file and left:
            piece = part.file.read(min(left, COPY_BYTES))
            if not piece:
                said = Problem(
                    "file_changed",
                    part.name,
                    "became shorter while it was sent",
                    "publish a folder that nobody writes to",
                )
                raise CheckpointInvalid([said])
            left -= len(piece)
            yield piece
        yield b"\r\n"
    yield end
