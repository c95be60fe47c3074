"""A server in figures: how much it works on at once, and how long steps and loads take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """The defaults are the bench's model on two cores with AMX, as far as it was measured there.

    A step gives each sequence a token. Its three parts are those with which the rows nf4-1
    (95.1 tokens/s), nf4-24 (516.9) and mixed-nf4 (452.8, its base 524.3) of docs/benchmarks.md come
    out. Prompts are in them: four tokens for each of the answer, as in the bench.
    """

    sequences: int = 24
    slots: int = 8  # of --max-loras, by default
    places: int = 32  # of --max-cpu-loras, by default
    step_seconds: float = 0.00895
    sequence_seconds: float = 0.00156
    adapter_seconds: float = 0.0009
    load_seconds: float = 0.119  # docs/log/adapter-loads.md, 2026-11-27
    patience_seconds: float = 0.5  # until a slot is drained for another adapter

    def step(self, sequences: int, adapters: int) -> float:
        """Seconds of a step with so many sequences of so many adapters."""
        return (
            self.step_seconds + self.sequence_seconds * sequences + self.adapter_seconds * adapters
        )

    @property
    def tokens_per_second(self) -> float:
        """With all sequences and slots in use."""
        return self.sequences / self.step(self.sequences, min(self.slots, self.sequences))
