"""Reads the adapters.npz that mlx-lm wrote in 2024: a zip of arrays in numpy's format.

np.savez and mlx store the members without compression, so reading takes no more memory than the
file has bytes; any other archive is malformed. numpy evaluates an array's header as Python. Here it
is matched, in the one form that numpy and mlx write (mlx's own reader, mlx/io/load.cpp, knows no
other). Nothing is evaluated or unpickled.
"""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from adapters.errors import quote

MAX_ARRAYS = 16_384
# 16,384 members with names of 200 characters; parsing the most that fit takes 0.4 s and 32 MB.
MAX_DIRECTORY_BYTES = 4 << 20
MAX_HEADER_BYTES = 10_000  # as numpy's
MAX_DIGITS = 15  # of one dimension
READ_BYTES = 1 << 20

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version
HEADER = re.compile(
    rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\)(?:, )?\}\s*"
)
ENCRYPTED = 0x2041  # the bits of a member's flags: its values, strongly, and its header
# What zipfile raises for a file that it can't read: RuntimeError is for an encrypted member or a
# form that it does not know, OverflowError for a place beyond any file.
UNREADABLE = (zipfile.BadZipFile, EOFError, OSError, OverflowError, RuntimeError, ValueError)


class NpzMalformed(Exception):
    """The file is not an archive as mlx writes it; the text says why."""


@dataclass(frozen=True, slots=True)
class Array:
    """One array: its type in numpy's letters, its shape, and where its values begin."""

    kind: str
    shape: tuple[int, ...]
    archive: zipfile.ZipFile
    member: zipfile.ZipInfo
    begin: int

    def read(self, size: int) -> bytes:
        """Its values, which must have this size; raises NpzMalformed."""
        if self.member.file_size != self.begin + size:
            raise NpzMalformed(f"{quote(self.member.filename)} has not the size of its shape")
        with _reported(), self.archive.open(self.member) as entry:
            entry.read(self.begin)
            # To the end, where zipfile compares the checksum.
            return b"".join(iter(lambda: entry.read(READ_BYTES), b""))


def read_npz(file: IO[bytes]) -> dict[str, Array]:
    """The arrays by name, from their headers; raises NpzMalformed. `file` stays open."""
    with _reported():
        archive = zipfile.ZipFile(_Bounded(file))
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise NpzMalformed(f"it has {len(members):,} members, the limit is {MAX_ARRAYS:,}")
        arrays = {
            member.filename.removesuffix(".npy"): _read_head(archive, member) for member in members
        }
    if len(arrays) < len(members):
        raise NpzMalformed("it has an array twice")
    return arrays


class _Bounded:
    """The file for `ZipFile`, which reads a directory as long as the file says, all at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            said = f"its directory has {size} bytes, the limit is {MAX_DIRECTORY_BYTES}"
            raise NpzMalformed(said)
        return self._file.read(size if size >= 0 else MAX_DIRECTORY_BYTES)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise NpzMalformed(str(error)) from error


def _read_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    name = quote(member.filename)
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
        raise NpzMalformed(f"{name} is compressed or encrypted")
    with archive.open(member) as entry:
        magic = entry.read(8)
        if magic[:6] != MAGIC or len(magic) < 8 or magic[6] not in LENGTH_BYTES:
            raise NpzMalformed(f"{name} is no array of numpy's")
        length = int.from_bytes(entry.read(LENGTH_BYTES[magic[6]]), "little")
        if length > MAX_HEADER_BYTES:
            raise NpzMalformed(f"the header of {name} has {length:,} bytes")
        found = HEADER.fullmatch(entry.read(length))
        begin = entry.tell()
    if not found:
        raise NpzMalformed(f"the header of {name} is not one that numpy or mlx writes")
    if found[2] == b"True":
        raise NpzMalformed(f"{name} is stored by columns")
    return Array(found[1].decode("latin-1"), _shape(name, found[3]), archive, member, begin)


def _shape(name: str, text: bytes) -> tuple[int, ...]:
    numbers = text.rstrip(b", ").split(b",") if text.strip() else []
    sizes = [number.strip() for number in numbers]
    if not all(size.isdigit() and len(size) <= MAX_DIGITS for size in sizes):
        raise NpzMalformed(f"the shape of {name} has a number that can't be one")
    return tuple(map(int, sizes))
