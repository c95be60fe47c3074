"""NF4 layers on a CPU: repacked once after loading, multiplied without dequantising them.

There is one copy of the weights: the packed one replaces bitsandbytes'. A layer whose shape the
kernel does not take (see `_fits`), and a CPU without AVX2, keep bitsandbytes' way. With adapters, a
layer's NF4 product and its LoRA are one operator.
"""

import logging
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm_bnb_plugin.quantization.linear import BitsAndBytesLinearMethod

from server.kernels import operators
from server.kernels.versions import patch

logger = logging.getLogger(__name__)


@patch("0.32", before="0.33")
def install() -> None:
    """Layers that are not packed keep the plugin's own method. Idempotent."""
    apply = BitsAndBytesLinearMethod.apply
    if apply.__module__ == __name__:
        return

    def apply_packed(
        method: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if not _is_packed(layer):
            return apply(method, layer, x, bias)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.size(-1)).to(torch.bfloat16).contiguous()
        y: torch.Tensor = torch.ops.lorry.nf4_linear(rows, layer.weight).to(x.dtype)
        y = y.view(*x.shape[:-1], y.size(-1))
        return y if bias is None else y + bias

    BitsAndBytesLinearMethod.apply = apply_packed
    BitsAndBytesLinearMethod.process_weights_after_loading = _pack_layer


@patch("0.32", before="0.33")
def install_beside_adapters() -> None:
    """Layers not packed, or not for the compiled LoRA kernels, stay two operators. Idempotent."""
    apply = BaseLinearLayerWithLoRA._apply_sync
    if apply.__module__ == __name__:
        return

    def apply_together(
        layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        wrapper, base = layer.punica_wrapper, layer.base_layer
        fits = wrapper.is_native and x.dtype == torch.bfloat16 and bias is None
        if not fits or not _is_packed(base):
            return apply(layer, x, bias)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.size(-1)).contiguous()
        slots = layer.joined_slots, layer.output_slices
        y: torch.Tensor = wrapper.nf4_lora_linear(rows, base.weight, *slots)
        return y.view(*x.shape[:-1], y.size(-1))

    BaseLinearLayerWithLoRA._apply_sync = apply_together


def _is_packed(layer: Any) -> bool:
    return getattr(layer, "is_nf4_packed", False)


def _pack_layer(method: Any, layer: Any) -> None:
    """vLLM calls this for every layer after loading its weights."""
    if not operators.has_native():
        _warn_once()
        return
    if method.quant_config.load_in_8bit or not _fits(layer.weight):
        return
    states, offsets = layer.weight.bnb_quant_state, layer.weight.bnb_shard_offsets
    parts = [
        torch.ops.lorry.nf4_pack(
            layer.weight[offsets[i] : offsets[i + 1]].flatten(), state.absmax.float(), *state.shape
        )
        for i, state in sorted(states.items())  # vLLM inserts them in any order
    ]
    packed = torch.cat(parts) if len(parts) > 1 else parts[0]
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    layer.is_nf4_packed = True


def _fits(weight: Any) -> bool:
    return all(
        state.quant_type == "nf4"
        and state.blocksize == operators.BLOCK_WEIGHTS
        and state.shape[0] % operators.PANEL_COLUMNS == 0
        and state.shape[1] % operators.BLOCK_WEIGHTS == 0
        for state in weight.bnb_quant_state.values()
    )


def _warn_once() -> None:
    if not logger.disabled:
        logger.warning(
            "NF4: without compiled kernels (`make setup` builds them; x86 with AVX2), "
            "bitsandbytes' own serve, slowly."
        )
        logger.disabled = True
