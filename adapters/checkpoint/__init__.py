"""Judges an adapter folder: can the base model serve it?"""

from adapters.checkpoint.checkpoint import (
    Checkpoint,
    inspect_checkpoint,
    largest_weights,
    read_checkpoint,
)

__all__ = ["Checkpoint", "inspect_checkpoint", "largest_weights", "read_checkpoint"]
