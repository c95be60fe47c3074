"""Receives an adapter as a form: its files go straight to disk, in a folder of the store.

No name from a request becomes a path: only files with the exact names of an adapter's are kept.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from adapters.errors import CheckpointInvalid
from adapters.sources import FILES, SILENCE_SECONDS, WHOLE_SECONDS
from adapters.store.files import MAX_BYTES, PICKLES, FileRefused, copy_bounded
from server.admin.bodies import Publication
from server.admin.multipart import Part, read_parts
from server.errors import InvalidRequest, UploadTooSlow

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_PARTS = 32
_MAX_FIELD_BYTES = 1024


class ArrivingBody:
    """Lets another thread iterate over a request's body as it arrives.

    Raises UploadTooSlow, or InvalidRequest when the caller hangs up.
    """

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + WHOLE_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        while piece := asyncio.run_coroutine_threadsafe(self._next(), self._loop).result():
            yield piece

    async def _next(self) -> bytes:
        until = min(self._loop.time() + SILENCE_SECONDS, self._deadline)
        try:
            async with asyncio.timeout_at(until):
                return await anext(self._stream, b"")
        except TimeoutError:
            raise UploadTooSlow(
                f"No data arrived for {SILENCE_SECONDS:.0f} s, or the upload took longer than "
                f"{WHOLE_SECONDS:.0f} s. Nothing was published."
            ) from None
        except ClientDisconnect:
            raise InvalidRequest("The caller hung up.", code="upload_incomplete") from None


def take_upload(content_type: str, body: Iterable[bytes], folder: Path) -> Publication:
    """Write a form's files to `folder`, durably, and return its fields.

    Raises:
        InvalidRequest, pydantic.ValidationError: the form is malformed or has a wrong field.
        CheckpointInvalid: a file is too large.
        OSError: it can't be written.
    """
    fields: dict[str, list[str]] = {"name": [], "alias": []}
    for number, part in enumerate(read_parts(content_type, body), 1):
        if number > _MAX_PARTS:
            raise InvalidRequest(f"An upload has at most {_MAX_PARTS} parts.")
        if part.filename is not None:
            _take_file(part.filename, part.pieces, folder)
        elif part.name in fields:
            fields[part.name].append(_take_field(part))
        else:
            shown = part.name[:64]
            raise InvalidRequest(f"There is no form field {shown!r}.", param=shown)
    if len(fields["name"]) != 1:
        raise InvalidRequest("Give one form field `name`.", param="name")
    given = {"aliases": [each for each in fields["alias"] if each]} if fields["alias"] else {}
    return Publication.model_validate({"name": fields["name"][0]} | given)


def _take_field(part: Part) -> str:
    value = b""
    for piece in part.pieces:
        value += piece
        if len(value) > _MAX_FIELD_BYTES:
            raise InvalidRequest(
                f"The field {part.name!r} is longer than {_MAX_FIELD_BYTES} bytes.", param=part.name
            )
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The field {part.name!r} is not UTF-8.", param=part.name) from None


def _take_file(name: str, pieces: Iterator[bytes], folder: Path) -> None:
    known = next((each for each in (*FILES, *PICKLES) if each == name), None)
    if not _FILE_NAME.fullmatch(name) or (known and (folder / known).exists()):
        raise InvalidRequest(
            "Each file of an upload needs its own plain name, as in the adapter's folder.",
            code="bad_file_name",
        )
    if known in PICKLES:
        (folder / known).touch()  # publishing refuses a pickle by its name: no content needed
    elif known:
        try:
            copy_bounded(_Pieces(pieces), folder / known, MAX_BYTES[known])
        except FileRefused as refused:
            raise CheckpointInvalid([refused.problem]) from refused


class _Pieces:
    """An iterator of pieces as a readable file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _size: int, /) -> bytes:
        """The next piece, of any size; b"" at the end."""
        return next(self._pieces, b"")
