"""vLLM's LoRA interface on a CPU: one small GEMM pair per adapter that is in the batch.

Index -1 means "no adapter": such rows are not touched, bit for bit, and a batch of base requests
does no LoRA work. A row's delta comes from its own slot only (no masking of other slots' products:
0 x NaN is NaN) and is made finite and bounded before it is added. For the same reason a slot that
was freed cannot leak, though vLLM leaves its weights in place: no row points at it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from server.kernels.segments import Segment, bounded_, find_segments, project

Segments = tuple[Segment, ...]


class SegmentedPunicaWrapper(PunicaWrapperBase):
    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        self._token_segments: Segments = ()
        self._sampled_segments: Segments = ()
        self.no_lora = True

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
        self._token_segments = find_segments(self.token_lora_indices)
        self._sampled_segments = find_segments(self.sampler_indices)
        self.no_lora = not self._token_segments

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        x = _as_rows(x)
        for segment in self._segments_of_tokens(x):
            rows = segment.take(x)
            for out, stacked in zip(y, lora_a_stacked, strict=True):
                a = _weight(stacked, segment)
                segment.put(_as_rows(out)[:, : a.size(0)], (project(rows, a) * scale).to(out.dtype))

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
        columns = _columns(_as_rows(y), output_slices, offset_start)
        for segment in self._segments_of_tokens(x[0]):
            write = _writer(segment, add_inputs)
            for out, shrunk, stacked in zip(columns, x, lora_b_stacked, strict=True):
                write(out, _delta(segment.take(shrunk), stacked, segment, out.dtype))

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`x` is A, already looked up per token; what it holds for base tokens is not used."""
        self.add_expand(y, (x,), (lora_b_stacked,), (y.size(-1),), add_inputs=add_inputs)

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
        """`buffer` is scratch space, which this computation does not need."""
        x, columns = _as_rows(x), _columns(_as_rows(y), output_slices)
        for segment in self._segments_of_tokens(x):
            rows, write = segment.take(x), _writer(segment, add_inputs)
            for out, a, b in zip(columns, lora_a_stacked, lora_b_stacked, strict=True):
                shrunk = project(rows, _weight(a, segment)) * scale
                write(out, _delta(shrunk, b, segment, out.dtype))

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
        x, y = _as_rows(x), _as_rows(y)
        # The logits and the adapters may be padded to different vocabulary sizes.
        vocab = min(y.size(1), lora_b_stacked.size(-2))
        for segment in self._segments_of_logits(x):
            shrunk = project(segment.take(x), _weight(lora_a_stacked, segment)) * scale
            delta = _delta(shrunk, lora_b_stacked, segment, y.dtype)
            segment.add(y[:, :vocab], delta[:, :vocab])

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """An adapter's own classifier head takes the place of the base's on that adapter's rows."""
        for segment in self._segments_of_logits(x):
            if module_enabled[segment.slot]:
                output = project(segment.take(x), _weight(weight_stacked, segment))
                segment.put(y, bounded_(output + bias_stacked[segment.slot], y.dtype))

    def _segments_of_tokens(self, x: torch.Tensor) -> Segments:
        # More rows than tokens are padding at the end; fewer cannot be matched with adapters.
        rows, tokens = x.size(0), len(self.token_lora_indices)
        assert self.no_lora or rows >= tokens, f"{rows} rows for the adapters of {tokens} tokens"
        return self._token_segments

    def _segments_of_logits(self, x: torch.Tensor) -> Segments:
        """Rows of a logits call: the sampled positions or, for prompt_logprobs, a run of tokens.

        vLLM does not say which. It takes prompt logprobs request by request from a slice of the
        batch's hidden states, while sampled rows are gathered into memory of their own.
        """
        rows, slots = x.size(0), self.token_lora_indices
        start = _start_in_batch(x, len(slots))
        if start is not None:
            return find_segments(slots[start : start + rows])
        if rows == len(self.sampler_indices):
            return self._sampled_segments
        if rows == len(slots):
            return self._token_segments
        return self._segments_of_unknown(rows)

    def _segments_of_unknown(self, rows: int) -> Segments:
        """Only a batch of one adapter leaves no doubt; else no adapter beats a wrong one."""
        slots = set(self.sampler_indices.tolist())
        if len(slots) == 1:
            return find_segments(torch.full((rows,), slots.pop()))
        logging.getLogger(__name__).warning(
            "%d rows of logits match neither the sampled positions nor the tokens of a batch with "
            "several adapters: they are the base model's, without any lm_head adapter.",
            rows,
        )
        return ()


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    # Must alias: results are written through it.
    return x.view(-1, x.size(-1))


def _weight(stacked: torch.Tensor, segment: Segment) -> torch.Tensor:
    """A slot's matrix out of (slots, 1, rows, columns)."""
    return stacked[segment.slot].view(-1, stacked.size(-1))


def _columns(y: torch.Tensor, widths: Iterable[int], start: int = 0) -> Sequence[torch.Tensor]:
    columns = []
    for width in widths:
        columns.append(y.narrow(1, start, width))
        start += width
    return columns


def _delta(
    shrunk: torch.Tensor, stacked: torch.Tensor, segment: Segment, dtype: torch.dtype
) -> torch.Tensor:
    return bounded_(project(shrunk, _weight(stacked, segment)), dtype)


def _writer(segment: Segment, add: bool) -> Callable[[torch.Tensor, torch.Tensor], None]:
    return segment.add if add else segment.put


def _start_in_batch(x: torch.Tensor, tokens: int) -> int | None:
    """Where `x` starts in the hidden states of the batch, if it is a slice of them."""
    width = x.stride(0)
    if width == 0:
        return None
    rows_in_memory = x.untyped_storage().nbytes() // x.element_size() // width
    start = x.storage_offset() // width
    is_slice = x.size(0) < rows_in_memory and tokens <= rows_in_memory
    return start if is_slice and start + x.size(0) <= tokens else None
