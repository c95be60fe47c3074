"""What an adapter folder holds, and whether a base model can serve it."""

from adapters.checkpoint.checkpoint import (
    Checkpoint,
    inspect_checkpoint,
    largest_weights,
    read_checkpoint,
)

__all__ = ["Checkpoint", "inspect_checkpoint", "largest_weights", "read_checkpoint"]
