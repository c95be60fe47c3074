"""What NF4 does to a base: which linears it quantizes, their bytes, their values.

The settings are those of QLoRA as Lorry trains and vLLM serves it: blocks of 64 weights, the scales
of the blocks quantized again in blocks of 256 (double quantization).
"""

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# At import, bitsandbytes warns of an optional CPU kernel that is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

BLOCK: Final = 64
SCALE_BLOCK: Final = 256


def quantized_linears(model: "PreTrainedModel") -> "dict[str, torch.nn.Linear]":
    """The linears that transformers puts in NF4, by name: all but the output head."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = set(get_keys_to_not_convert(model))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in kept
    }


def packed_bytes(weights: int) -> int:
    """The bytes of a quantized weight: 4 bits each, a byte a block, a float32 a block of blocks."""
    blocks = -(-weights // BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // SCALE_BLOCK)


def round_to_nf4(weight: "torch.Tensor") -> "torch.Tensor":
    """The values that a weight has once it is quantized: the nearest that NF4 can hold.

    They have the weight's own type. Computed by bitsandbytes.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    rounded: torch.Tensor = dequantize_4bit(packed, state)
    return rounded.reshape(weight.shape)
