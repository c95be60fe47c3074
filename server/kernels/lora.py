"""vLLM's LoRA interface on a CPU: passes each call to the operators, with the plan of the batch.

Index -1 means "no adapter": such rows stay the same, bit for bit, and a batch of base requests does
no LoRA work. A row's delta comes from its own slot only (other slots' products are not computed and
masked: 0 x NaN is NaN) and is made finite and bounded before it is added.
"""

import logging
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from server.kernels import operators
from server.kernels.plan import make_plan, write_plan
from server.kernels.reference import bounded, count_repairs, limit, project

_NATIVE = torch.ops.lorry.lora_linear_.default
_REFERENCE = torch.ops.lorry.lora_linear_reference_.default


class PlannedPunicaWrapper(PunicaWrapperBase):
    """`repaired` counts, per slot, the adapter's values that were not finite or too large."""

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        config = kwargs["lora_config"]
        self._max_rank = config.max_lora_rank
        self._ranks = [config.max_lora_rank] * config.max_loras
        self._has_logits = [True] * config.max_loras
        self.repaired = torch.zeros(config.max_loras, dtype=torch.long)
        self._token_plan = make_plan(max_num_batched_tokens, config.max_loras)
        self._logits_plan = make_plan(max_num_batched_tokens, config.max_loras)
        self.is_native = (
            operators.has_native()
            and config.lora_dtype == torch.bfloat16
            and config.max_lora_rank % 8 == 0
        )
        self.no_lora = True

    def describe_slot(self, slot: int, rank: int, has_logits: bool) -> None:
        """Set what the adapter in a slot has to compute; called before its first batch."""
        self._ranks[slot] = rank
        self._has_logits[slot] = has_logits
        self.repaired[slot] = 0

    def update_metadata(
        self,
        mapping: Any,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """vLLM calls this only when the rows' adapters or the slots have changed."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        write_plan(self._token_plan, self.token_lora_indices, self._ranks)
        self.no_lora = not self._token_plan[0]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`buffer` is scratch space; this computation needs none."""
        y, x = _as_rows(y), _as_rows(x)
        linear = _NATIVE if self.takes(y, x) else _REFERENCE
        linear(
            *(y, x, lora_a_stacked, lora_b_stacked, self._token_plan),
            *(self.repaired, scale, limit(y.dtype), add_inputs),
        )

    def add_lora_layer(
        self, y: torch.Tensor, x: torch.Tensor, slots: torch.Tensor, columns: tuple[int, ...]
    ) -> None:
        """The same for slots in one tensor (server/kernels/slots.py) and rows that it `takes`."""
        torch.ops.lorry.lora_layer_(
            *(_as_rows(y), x.reshape(-1, x.size(-1)), slots, columns, self._max_rank),
            *(self._token_plan, self.repaired, limit(y.dtype)),
        )

    def nf4_lora_linear(
        self, x: torch.Tensor, packed: torch.Tensor, slots: torch.Tensor, columns: tuple[int, ...]
    ) -> torch.Tensor:
        """The whole output of a layer for bf16 `x` (rows, k); only if `is_native`."""
        return torch.ops.lorry.nf4_lora_linear(  # type: ignore[no-any-return]
            *(x, packed, slots, columns, self._max_rank),
            *(self._token_plan, self.repaired, limit(x.dtype)),
        )

    def takes(self, *rows: torch.Tensor) -> bool:
        """Whether the compiled operators take these rows: bf16, columns adjacent in memory."""
        fits = all(each.dtype == torch.bfloat16 and each.stride(-1) == 1 for each in rows)
        return fits and self.is_native

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        out = [_as_rows(part) for part in y]
        torch.ops.lorry.lora_shrink_(out, _as_rows(x), lora_a_stacked, self._token_plan, scale)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        torch.ops.lorry.lora_expand_(
            *(_as_rows(y), list(x), lora_b_stacked, self._token_plan),
            *(self.repaired, limit(y.dtype), offset_start, add_inputs),
        )

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`x` is A, already looked up per token; its rows for base tokens are not used."""
        self.add_expand(y, (x,), (lora_b_stacked,), (y.size(-1),), add_inputs=add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        slots = self._slots_of_logits(x := _as_rows(x))
        if not any(self._has_logits[slot] for slot in set(slots.tolist()) - {-1}):
            return
        write_plan(self._logits_plan, slots, self._ranks)
        y = _as_rows(y)
        # The logits and the adapters may be padded to different vocabulary sizes.
        b = lora_b_stacked[:, :, : y.size(1)]
        linear = _NATIVE if self.takes(y, x) else _REFERENCE
        linear(
            *(y, x, (lora_a_stacked,), (b,), self._logits_plan),
            *(self.repaired, scale, limit(y.dtype), True),
        )

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """On an adapter's rows its own classifier head replaces the base's."""
        slots = self._slots_of_logits(x)
        for slot in set(slots.tolist()) - {-1}:
            if module_enabled[slot]:
                rows = (slots == slot).nonzero().flatten()
                output = project(x[rows], weight_stacked[slot, 0]) + bias_stacked[slot]
                self.repaired[slot] += count_repairs(output, limit(y.dtype))
                y[rows] = bounded(output, limit(y.dtype)).to(y.dtype)

    def _slots_of_logits(self, x: torch.Tensor) -> torch.Tensor:
        """The slots of the rows of a logits call: the sampled positions or, for prompt_logprobs, a
        run of tokens.

        vLLM does not say which. It takes prompt logprobs request by request from a slice of the
        batch's hidden states, while sampled rows are gathered into memory of their own.
        """
        rows = x.size(0)
        slots: torch.Tensor = self.token_lora_indices
        sampled: torch.Tensor = self.sampler_indices
        start = _start_in_batch(x, len(slots))
        if start is not None:
            return slots[start : start + rows]
        if rows == len(sampled):
            return sampled
        if rows == len(slots):
            return slots
        return self._slots_of_unknown(rows)

    def _slots_of_unknown(self, rows: int) -> torch.Tensor:
        """Certain with one adapter in the batch; else no adapter is better than a wrong one."""
        slots = set(self.sampler_indices.tolist())
        if len(slots) == 1:
            return torch.full((rows,), slots.pop())
        logging.getLogger(__name__).warning(
            "%d rows of logits match neither the sampled positions nor the tokens of a batch with "
            "several adapters: they get the base model's logits, without any lm_head adapter.",
            rows,
        )
        return torch.full((rows,), -1)


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    # Must alias: results are written through it.
    return x.view(-1, x.size(-1))


def _start_in_batch(x: torch.Tensor, tokens: int) -> int | None:
    """The row of the batch's hidden states at which `x` starts, if it is a slice of them."""
    width = x.stride(0)
    if width == 0:
        return None
    rows_in_memory = x.untyped_storage().nbytes() // x.element_size() // width
    start = x.storage_offset() // width
    is_slice = x.size(0) < rows_in_memory and tokens <= rows_in_memory
    return start if is_slice and start + x.size(0) <= tokens else None
