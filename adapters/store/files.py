"""The files of an adapter, and the one safe way to open one of them.

No link is followed, and no pipe or device is waited for. Knows nothing of the files' contents.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from adapters.errors import Problem, quote
from adapters.store.strict_json import parse_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "lorry.json"
SERVED = (CONFIG, WEIGHTS)
# The form in which it was trained. An object has a TOKENIZER, of that form alone, if it is not its
# base's (adapters/chat_form): then its digest counts it.
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"
FORM = (CHAT_TEMPLATE, TOKENIZER)
COUNTED = (*SERVED, TOKENIZER)
# mlx-lm's own weights (adapters/checkpoint/mlx.py): of now, and of 2024.
MLX_WEIGHTS = "adapters.safetensors"
MLX_NPZ = "adapters.npz"
MLX = (MLX_WEIGHTS, MLX_NPZ)
PICKLES = ("adapter_model.bin", "adapter_model.pt")

MIB = 1 << 20
COPY_BYTES = MIB
# Rank 512 on every linear of a 70B model in float32 fits into the limit of the weights. For a known
# base, checkpoint.largest_weights is lower.
MAX_BYTES = {
    CONFIG: MIB,
    PROVENANCE: MIB,
    WEIGHTS: 32 << 30,
    MLX_WEIGHTS: 32 << 30,
    MLX_NPZ: 32 << 30,
    CHAT_TEMPLATE: MIB,
    TOKENIZER: 16 * MIB,  # lists thousands of added tokens
}
# How deep, and among how many sub-folders, an adapter is looked for that is not in the folder.
SEARCHED = ("*", "*/*")
MOST_SEARCHED = 1_000

SAVE_AGAIN = "save the adapter again with PEFT's save_pretrained"


class FileRefused(Exception):
    """A file of an adapter folder that is refused; carries the Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Readable(Protocol):
    """An open file, or an object that is read like one."""

    def read(self, size: int, /) -> bytes: ...


def open_adapter_file(folder: Path, name: str, max_bytes: int | None = None) -> BufferedReader:
    """Open one file of an adapter folder for reading; raises FileRefused."""
    try:
        descriptor = os.open(
            folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError as error:
        raise FileRefused(_explain_refusal(folder, name, error)) from error
    if problem := _judge(os.fstat(descriptor), name, max_bytes or MAX_BYTES[name]):
        os.close(descriptor)
        raise FileRefused(problem)
    return os.fdopen(descriptor, "rb")


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Read a small file that holds one JSON object; raises FileRefused or ValueError."""
    with open_adapter_file(folder, name) as file:
        text = file.read(MAX_BYTES[name])
    return parse_object(text)


def _judge(status: os.stat_result, name: str, max_bytes: int) -> Problem | None:
    if not stat.S_ISREG(status.st_mode):
        return Problem("file_not_regular", name, "is not a regular file", SAVE_AGAIN)
    if status.st_size > max_bytes:
        return too_large(name, max_bytes)
    return None


def too_large(name: str, max_bytes: int) -> Problem:
    said = f"has more than {max_bytes} bytes, the most that this file can need"
    return Problem("file_too_large", name, said, SAVE_AGAIN)


def copy_bounded(
    source: Readable, path: Path, max_bytes: int, seen: Callable[[bytes], object] = bool
) -> None:
    """Copy the rest of `source` to a new file, durably; raises FileRefused beyond `max_bytes`.

    The count is of bytes read: a file may grow meanwhile, or be a stream. `seen` gets every piece.
    """

    def pieces() -> Iterator[bytes]:
        left = max_bytes
        while piece := source.read(COPY_BYTES):
            left -= len(piece)
            if left < 0:
                raise FileRefused(too_large(path.name, max_bytes))
            seen(piece)
            yield piece

    write_durably(path, pieces())


def write_durably(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file, which nobody may write again; raises OSError."""
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _explain_refusal(folder: Path, name: str, error: OSError) -> Problem:
    if error.errno == errno.ELOOP:
        return Problem(
            "file_not_regular",
            name,
            "is a symbolic link, which is never followed",
            "copy the folder with the links resolved (cp -rL) and publish the copy",
        )
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = error.strerror or type(error).__name__
        return Problem("file_unreadable", name, f"cannot be read: {reason}", "check its rights")
    for pickle in PICKLES:
        if name == WEIGHTS and (folder / pickle).exists():
            return Problem(
                "file_pickle",
                pickle,
                "is a pickle, which can run code when it is read",
                f"{SAVE_AGAIN}(..., safe_serialization=True)",
            )
    if name == WEIGHTS and any(folder.glob("adapter_[0-9]*.pt")):
        said = "is not there, and adapter_N.pt is torchtune's own pickle, which is never read"
        fix = "publish the folder epoch_N that torchtune 0.6 writes, which holds PEFT's files too"
        return Problem("file_pickle", WEIGHTS, said, fix)
    if below := _find_below(folder, name):
        others = f" and in {len(below) - 1} more" if below[1:] else ""
        said = f"is not in the folder, but in its sub-folder {quote(below[0])}{others}"
        return Problem("file_missing", name, said, "publish that sub-folder")
    said, fix = "is not in the folder", "give the folder that PEFT's save_pretrained wrote"
    return Problem("file_missing", name, said, fix)


def _find_below(folder: Path, name: str) -> list[str]:
    """The sub-folders that hold the file; checkpoints by their numbers, the last one first."""
    found = []
    with suppress(OSError):
        for pattern in SEARCHED:
            for path in islice(folder.glob(f"{pattern}/{name}"), MOST_SEARCHED):
                found.append(path.parent.relative_to(folder))
    return [str(path) for path in sorted(found, key=_by_depth_and_number)]


def _by_depth_and_number(path: Path) -> tuple[int, int, str]:
    number = re.search(r"[0-9]{1,9}$", path.name)
    return len(path.parts), -int(number[0]) if number else 0, str(path)
