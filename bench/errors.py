"""What can go wrong with a benchmark, as one tree.

BenchError
├── RowUnknown      a pattern of `--rows` that fits no row
├── OptionsClash    options that can't be given together
├── SideFailed      a side did not start, died or gave another answer than was asked for
└── OutUnwritable   a folder or file of results that can't be written
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
