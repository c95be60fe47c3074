"""Recorded traffic from a file of JSON lines, one call per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from loadtest.errors import ScenarioInvalid
from loadtest.plan.traffic import MOST_TOKENS, Trace

MOST_LINES = 1_000_000

Tokens = Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)]


class Line(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """One call; fields that are None are drawn from the stream."""

    at: Annotated[float, msgspec.Meta(ge=0)]  # seconds
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    adapter: Annotated[int, msgspec.Meta(ge=0)] | None = None  # index in the stream's slice


_DECODER = msgspec.json.Decoder(Line)


def read_trace(trace: Trace, seconds: float, adapters: int) -> list[Line]:
    """The lines within a phase of `seconds`, at the trace's speed.

    Lines past the phase's end are validated all the same.

    Args:
        adapters: number of adapters of the stream.

    Raises:
        ScenarioInvalid: names the file and the wrong line.
    """
    try:
        lines = list(_read(trace.file, adapters))
    except OSError as error:
        raise ScenarioInvalid(f"can't read the trace {trace.file}: {error.strerror}") from None
    return [
        msgspec.structs.replace(line, at=line.at / trace.speed)
        for line in lines
        if line.at / trace.speed < seconds
    ]


def _read(file: Path, adapters: int) -> Iterator[Line]:
    before = 0.0
    with file.open("rb") as opened:
        for number, text in enumerate(opened, start=1):
            try:
                line = _DECODER.decode(text)
                _check(line, number, before, adapters)
            except (msgspec.DecodeError, ValueError) as error:
                raise ScenarioInvalid(f"{file}, line {number}: {error}") from None
            before = line.at
            yield line


def _check(line: Line, number: int, before: float, adapters: int) -> None:
    if number > MOST_LINES:
        raise ValueError(f"a trace has at most {MOST_LINES:,} lines")
    if line.at < before:
        raise ValueError(f"`at` is {line.at:g} after {before:g}: sort the lines by it")
    if line.adapter is not None and line.adapter >= adapters:
        raise ValueError(f"`adapter` is {line.adapter}, but the stream has {adapters}, from 0")
