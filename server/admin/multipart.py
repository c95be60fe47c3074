"""A multipart form as it arrives, part by part: python-multipart's push parser, pulled.

Holds one piece of the body at a time. Knows nothing of what the parts are for.
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
    """`pieces` can be read until the next part is asked for; `filename` is None for a field."""

    name: str
    filename: str | None
    pieces: Iterator[bytes]


class _Head(NamedTuple):
    name: str
    filename: str | None


_Token = _Head | bytes | None  # how a part begins, a piece of it, its end


def read_parts(content_type: str, chunks: Iterable[bytes]) -> Iterator[Part]:
    """The parts of a form in order; raises InvalidRequest where it is none, or not whole."""
    tokens = _read_tokens(content_type, chunks)
    for token in tokens:
        if isinstance(token, _Head):
            pieces = _until_end(tokens)
            yield Part(token.name, token.filename, pieces)
            for _ in pieces:
                pass  # what nobody wanted


def _until_end(tokens: Iterator[_Token]) -> Iterator[bytes]:
    while isinstance(piece := next(tokens, None), bytes):
        yield piece


def _read_tokens(content_type: str, chunks: Iterable[bytes]) -> Iterator[_Token]:
    listener = _Listener()
    try:
        parser = listener.listen_to(parse_options_header(content_type)[1].get(b"boundary", b""))
        for chunk in chunks:
            parser.write(chunk)
            while listener.heard:
                yield listener.heard.popleft()
        if parser.state != MultipartState.END:
            raise FormParserError("it ends in the middle")
    except FormParserError as error:
        raise InvalidRequest(f"The form can't be read: {error}.") from error


class _Listener:
    """Notes what the parser says of one chunk."""

    def __init__(self) -> None:
        self.heard: deque[_Token] = deque()
        self._header = self._value = self._disposition = b""

    def listen_to(self, boundary: bytes) -> MultipartParser:
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
                "on_part_data": lambda data, start, end: self.heard.append(data[start:end]),
                "on_part_end": lambda: self.heard.append(None),
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
        self.heard.append(_Head(options[b"name"].decode(errors="replace"), shown))
