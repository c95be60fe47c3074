"""The errors of a benchmark, as one tree.

BenchError
├── RowUnknown      a pattern of `--rows` matches no row
├── OptionsClash    options exclude each other
├── SideFailed      a side did not start, died, or answered with another number of tokens
└── OutUnwritable   a folder or file for results can't be written
"""

from typing import ClassVar


class BenchError(Exception):
    """Root of the tree; the message says what happened and what to do next."""

    code: ClassVar[str] = "bench_error"


class RowUnknown(BenchError):
    code = "row_unknown"


class OptionsClash(BenchError):
    code = "options_clash"


class SideFailed(BenchError):
    code = "side_failed"


class OutUnwritable(BenchError):
    code = "out_unwritable"
