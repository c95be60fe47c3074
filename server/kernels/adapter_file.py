"""An adapter's tensors as the engine takes them in: one read into memory that is the adapter's own.

vLLM maps the file and takes a tensor at a time, 168 of them in twelve layers: four times as slow,
and most of it holds Python's lock against the steps. What has the engine's dtype stays a map even
then, whose pages are read by the step that copies them, or never if the file is gone.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_WEIGHTS = "adapter_model.safetensors"


class OwnedLoRAModel(LoRAModel):
    """vLLM's, which the worker's manager makes of a folder (`_lora_model_cls`)."""

    @classmethod
    def from_local_checkpoint(
        cls, lora_dir: str, expected_lora_modules: set[str], peft_helper: Any, **options: Any
    ) -> LoRAModel:
        """Raises OSError if the file can't be read, ValueError if it is not this base's adapter.

        Everything else that vLLM's method looks at was judged before (adapters/checkpoint),
        and experts have no adapters here.
        """
        options.pop("moe_ep_spec", None)
        tensors = load_tensors(Path(lora_dir) / _WEIGHTS)
        model = cls.from_lora_tensors(tensors=tensors, peft_helper=peft_helper, **options)
        _refuse_others(model.loras, expected_lora_modules)
        return model


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Each tensor of a safetensors file, all in one memory that nothing else holds.

    Raises OSError if it can't be read, ValueError if it is not whole (the format:
    https://huggingface.co/docs/safetensors; 8 bytes of length, a JSON header, the values).
    """
    raw = _read(path)
    try:
        begin = 8 + int.from_bytes(raw[:8].numpy().tobytes(), "little")
        if begin > len(raw):
            raise ValueError(begin)
        header = dict(json.loads(raw[8:begin].numpy().tobytes()))
        header.pop("__metadata__", None)
        return {name: _tensor(raw[begin:], **entry) for name, entry in header.items()}
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a whole safetensors file") from error


def _read(path: Path) -> torch.Tensor:
    with path.open("rb", buffering=0) as file:
        raw = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
        left = memoryview(raw.numpy().data)
        while left and (count := file.readinto(left)):
            left = left[count:]
    if left:
        raise ValueError(f"{path.name} became shorter while it was read")
    return raw


def _tensor(
    values: torch.Tensor, dtype: str, shape: list[int], data_offsets: list[int]
) -> torch.Tensor:
    begin, end = data_offsets
    own = values[begin:end]
    if own.storage_offset() % _DTYPES[dtype].itemsize:
        own = own.clone()
    tensor = own.view(_DTYPES[dtype]).view(shape)
    if list(tensor.shape) != shape:  # torch takes -1 for what is left
        raise ValueError(shape)
    return tensor


def _refuse_others(modules: Iterable[str], expected: set[str]) -> None:
    others = sorted(name for name in modules if name.rpartition(".")[2] not in expected)
    if others:
        raise ValueError(f"{others[0]} takes no adapter on this server ({len(others)} like it)")
