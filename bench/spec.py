"""The two records that the bench and a side exchange: the side's specification and its answer.

Knows neither vLLM nor how a side starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# lorry: our plugin and our process settings. stock: vLLM as it comes. stock-tuned: vLLM without
# our plugin, but with our process and thread settings.
Kind = Literal["lorry", "stock", "stock-tuned"]
Quantization = Literal["none", "bitsandbytes"]


_USUAL = (8, 16)  # slots and rank of most rows


@dataclass(frozen=True, slots=True)
class SideSpec:
    """One process tree with one model in it; `max_loras` 0 turns LoRA off."""

    kind: Kind
    quantization: Quantization = "none"
    max_loras: int = 0
    max_lora_rank: int = 16
    is_twin: bool = False  # a second process of the same side, to show the noise

    @property
    def label(self) -> str:
        """Its name in tables and messages."""
        name = {"lorry": "Lorry", "stock": "stock vLLM", "stock-tuned": "stock vLLM, tuned"}
        weights = "NF4" if self.quantization == "bitsandbytes" else "bf16"
        if not self.max_loras:
            return f"best base, {weights}" + (", twin" if self.is_twin else "")
        usual = (self.max_loras, self.max_lora_rank) == _USUAL
        slots = "" if usual else f", max_loras {self.max_loras}, max_lora_rank {self.max_lora_rank}"
        return f"{name[self.kind]}, {weights}{slots}"

    @property
    def slug(self) -> str:
        """Its name in file names, different for each spec."""
        lora = f"-{self.max_loras}x{self.max_lora_rank}" if self.max_loras else ""
        twin = "-twin" if self.is_twin else ""
        return f"{self.kind}-{self.quantization}{lora}{twin}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A workload's answers. `rivals`, on request: for each token, the others level with it."""

    seconds: float
    tokens: list[list[int]]
    rivals: list[list[list[int]]] | None = None

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return sum(map(len, self.tokens)) / self.seconds

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Outcome:
        return cls(**fields)
