"""Reads a multipart form part by part as it arrives, holding one piece of the body at a time.

On python-multipart's low-level parser. Its FormParser does not fit: it writes every file to a
temporary place of its own, and limits neither the number of parts nor the length of fields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from server.errors import InvalidRequest

_MAX_HEADERS = 8
_MAX_HEADER_BYTES = 1024  # of one line


class Part(NamedTuple):
    """`pieces` is valid until the next part is read; `filename` is None for a field."""

    name: str
    filename: str | None
    pieces: Iterator[bytes]


class _Head(NamedTuple):
    name: str
    filename: str | None


_Token = _Head | bytes | None  # the head of a part, a piece of it, its end


def read_parts(content_type: str, chunks: Iterable[bytes]) -> Iterator[Part]:
    """The parts of a form in order; raises InvalidRequest for a malformed or incomplete form."""
    tokens = _read_tokens(content_type, chunks)
    for token in tokens:
        if isinstance(token, _Head):
            pieces = _until_end(tokens)
            yield Part(token.name, token.filename, pieces)
            for _ in pieces:
                pass  # skip what the caller left unread


def _until_end(tokens: Iterator[_Token]) -> Iterator[bytes]:
    while isinstance(piece := next(tokens, None), bytes):
        yield piece


def _read_tokens(content_type: str, chunks: Iterable[bytes]) -> Iterator[_Token]:
    events = _ParserEvents()
    try:
        parser = events.attach_parser(parse_options_header(content_type)[1].get(b"boundary", b""))
        for chunk in chunks:
            parser.write(chunk)
            while events.tokens:
                yield events.tokens.popleft()
        if parser.state != MultipartState.END:
            raise FormParserError("it is incomplete")
    except FormParserError as error:
        raise InvalidRequest(f"The form can't be read: {error}.") from error


class _ParserEvents:
    """Collects the parser's callbacks for one chunk as tokens."""

    def __init__(self) -> None:
        self.tokens: deque[_Token] = deque()
        self._header = self._value = self._disposition = b""

    def attach_parser(self, boundary: bytes) -> MultipartParser:
        if not boundary:
            raise FormParserError("its content type has no boundary")
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_head,
                "on_part_data": lambda data, start, end: self.tokens.append(data[start:end]),
                "on_part_end": lambda: self.tokens.append(None),
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )

    def _begin(self) -> None:
        self._header = self._value = self._disposition = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end_head(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormParserError("a part has no name")
        filename = options.get(b"filename")
        shown = None if filename is None else filename.decode(errors="replace")
        self.tokens.append(_Head(options[b"name"].decode(errors="replace"), shown))
