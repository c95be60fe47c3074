"""What can go wrong while an adapter is trained, as one tree. Knows nothing of exit codes.

TrainingError
├── InputError           what the caller gave cannot be used; nothing was done
│   ├── RecipeInvalid    a recipe or an override with problems; names each key and value
│   ├── DataInvalid      a data set that is missing, empty or malformed; names each line
│   └── BaseInvalid      a base model that is missing or cannot be read
└── RunFailed            the training itself failed; nothing half-made was left
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


class RunFailed(TrainingError):
    code = "run_failed"


def list_problems(problems: Sequence[str]) -> str:
    """Join problems into one line, the first ten in full and the rest as a number."""
    shown = " | ".join(problems[:SHOWN_PROBLEMS])
    left = len(problems) - SHOWN_PROBLEMS
    return f"{shown} | and {left} more" if left > 0 else shown
