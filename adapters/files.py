"""The files an adapter consists of, and the one careful way to open one of them.

Knows nothing of what is in them. A link, a pipe or a device is never followed or waited for.
"""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from adapters.errors import Problem, quote

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "lorry.json"
SERVED = (CONFIG, WEIGHTS)
PICKLES = ("adapter_model.bin", "adapter_model.pt")

MIB = 1 << 20
# The weights' limit holds rank 512 on every linear of a 70B model in float32; it only keeps a
# wrong path from filling the disk, the exact size follows from the shapes.
MAX_BYTES = {CONFIG: MIB, PROVENANCE: MIB, WEIGHTS: 32 << 30}

SAVE_AGAIN = "save the adapter again with PEFT's save_pretrained"


class FileRefused(Exception):
    """A file of an adapter folder that cannot be taken; carries the Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def open_adapter_file(folder: Path, name: str) -> BufferedReader:
    """Open one file of an adapter folder for reading; raises FileRefused."""
    try:
        descriptor = os.open(
            folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError as error:
        raise FileRefused(_explain_refusal(folder, name, error)) from error
    if problem := _judge(os.fstat(descriptor), name):
        os.close(descriptor)
        raise FileRefused(problem)
    return os.fdopen(descriptor, "rb")


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A small file that holds one JSON object; raises FileRefused, or ValueError if it does not."""
    with open_adapter_file(folder, name) as file:
        text = file.read(MAX_BYTES[name])
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _judge(status: os.stat_result, name: str) -> Problem | None:
    if not stat.S_ISREG(status.st_mode):
        return Problem("file_not_regular", name, "is not a regular file", SAVE_AGAIN)
    if status.st_size > MAX_BYTES[name]:
        said = f"has {status.st_size} bytes, the limit is {MAX_BYTES[name]}"
        return Problem("file_too_large", name, said, SAVE_AGAIN)
    return None


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
    said = f"is not in the folder {quote(str(folder))}"
    return Problem("file_missing", name, said, "give the folder that PEFT's save_pretrained wrote")
