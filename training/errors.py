"""The errors of training, as one tree. Knows nothing of exit codes.

TrainingError
├── InputError           unusable input; nothing was done
│   ├── RecipeInvalid    problems of a recipe or an override; names each key and value
│   ├── DataInvalid      a missing, empty or malformed data set; names each line
│   ├── BaseInvalid      a missing or unreadable base model
│   ├── BaseMismatch     a base that the adapter was not trained on
│   ├── OutputExists     a folder to write that is there already
│   └── RunUnfinished    an earlier run stopped half-way; resume it or start again
├── Interrupted          stopped by a signal, with a checkpoint to resume from
├── RunFailed            the training itself failed
│   └── Diverged         the loss is not finite, or far above the first one
├── MergeFailed          merging failed; nothing was kept
└── DiskFull             no space is left for the result; nothing was kept
"""

from collections.abc import Sequence
from typing import ClassVar

SHOWN_PROBLEMS = 10


class TrainingError(Exception):
    """Root of the tree: what happened (message) and what to do next (hint)."""

    code: ClassVar[str] = "training_error"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}"


class InputError(TrainingError):
    code = "bad_input"


class RecipeInvalid(InputError):
    code = "recipe_invalid"


class DataInvalid(InputError):
    code = "data_invalid"


class BaseInvalid(InputError):
    code = "base_invalid"


class BaseMismatch(InputError):
    code = "base_mismatch"


class OutputExists(InputError):
    code = "output_exists"


class RunUnfinished(InputError):
    code = "run_unfinished"


class Interrupted(TrainingError):
    code = "interrupted"

    def __init__(self, message: str, hint: str, signal: int) -> None:
        super().__init__(message, hint)
        self.signal = signal


class RunFailed(TrainingError):
    code = "run_failed"


class Diverged(RunFailed):
    code = "diverged"


class MergeFailed(TrainingError):
    code = "merge_failed"


class DiskFull(TrainingError):
    code = "disk_full"


def list_problems(problems: Sequence[str]) -> str:
    """Join problems into one line, the first ten in full and the rest as a number."""
    shown = " | ".join(problems[:SHOWN_PROBLEMS])
    left = len(problems) - SHOWN_PROBLEMS
    return f"{shown} | and {left} more" if left > 0 else shown
