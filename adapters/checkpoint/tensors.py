"""Reads safetensors files: names, types and shapes from the header, magnitudes by streaming.

Renames tensors too: the header is written again, the values stay as they are.

Memory is bounded by the header limit and one chunk. Values are read, never memory-mapped: a file
that shrinks while it is read is an error, not a crash. Knows nothing of adapters.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from adapters.errors import quote
from adapters.store.strict_json import RepeatedKey, parse_object

# An adapter of every linear of 500 layers, with names of 200 characters, has 7,000 tensors and a
# header of 2.2 MB. Parsing the largest header takes about 100 ms and 50 MB.
MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 16_384
CHUNK_BYTES = 4 << 20
FLOATS = frozenset({"BF16", "F16", "F32"})

Floats = NDArray[np.float32]


class TensorsMalformed(Exception):
    """The file is not a whole and well-formed safetensors file; the text says why."""

    def __init__(self, said: str, code: str = "weights_malformed") -> None:
        super().__init__(said)
        self.code = code


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its type and shape, and the bytes [begin, end) of the file that hold it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The largest absolute value (nan or inf if any value is) and the Frobenius norm."""

    largest: float
    norm: float


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, from its header; raises TensorsMalformed."""
    try:
        header, data_begin = _read_header(path)
        # The engine's own reader: it checks sizes, overlaps, gaps and the end.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise TensorsMalformed(str(error)) from error
    return {
        name: Tensor(
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            data_begin + entry["data_offsets"][0],
            data_begin + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            said = f"the header has {length} bytes, the limit is {MAX_HEADER_BYTES}"
            raise TensorsMalformed(said, "weights_header_too_large")
        raw = file.read(length)
    try:
        header = parse_object(raw)
    except RepeatedKey as error:
        said = f"the header names {quote(error.key)} twice"
        raise TensorsMalformed(said, "tensor_repeated") from error
    except ValueError as error:
        raise TensorsMalformed("the header cannot be read", "weights_header_invalid") from error
    if len(header) > MAX_TENSORS:
        said = f"the header names {len(header)} tensors, the limit is {MAX_TENSORS}"
        raise TensorsMalformed(said, "too_many_tensors")
    return header, 8 + length


def rename_tensors(path: Path, names: Mapping[str, str]) -> Iterator[bytes]:
    """The pieces of a well-formed file with other names for some of its tensors."""
    header, data_begin = _read_header(path)
    renamed = {names.get(name, name): entry for name, entry in header.items()}
    yield encode_header(renamed)
    with path.open("rb") as file:
        file.seek(data_begin)
        while piece := file.read(CHUNK_BYTES):
            yield piece


def encode_header(header: Mapping[str, Any]) -> bytes:
    """What stands before the values: the header's length, and the header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the values stay aligned
    return len(text).to_bytes(8, "little") + text


def read_floats(file: BinaryIO, tensor: Tensor) -> Floats:
    """The values of one float tensor; raises TensorsMalformed if the file ends early."""
    return np.concatenate([*_stream(file, tensor)]).reshape(tensor.shape)


def measure(file: BinaryIO, tensor: Tensor) -> Magnitude:
    """Stream the values of one float tensor; raises TensorsMalformed if the file ends early."""
    largest = 0.0
    squares = 0.0
    for values in _stream(file, tensor):
        # A nan or an infinity makes min or max one; the sum of finite squares may overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            peak = float(np.maximum(values.max(), -values.min()))
            squares += float(np.dot(values, values))
        if not math.isfinite(peak):
            return Magnitude(peak, math.nan)
        largest = max(largest, peak)
    return Magnitude(largest, math.sqrt(squares))


def _stream(file: BinaryIO, tensor: Tensor) -> Iterator[Floats]:
    file.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        raw = file.read(min(left, CHUNK_BYTES))
        if len(raw) < min(left, CHUNK_BYTES):
            raise TensorsMalformed("the file ends in the middle of a tensor")
        left -= len(raw)
        yield _decode(raw, tensor.dtype)


def _decode(raw: bytes, dtype: str) -> Floats:
    if dtype == "BF16":  # the upper half of a float32; numpy has no such type
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32, copy=False)
