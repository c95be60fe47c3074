"""Our LoRA arithmetic against a float64 oracle, driven through vLLM's own wrapper interface."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.lora.layers import LoRAMapping

from server.kernels import lora, operators
from server.kernels.lora import PlannedPunicaWrapper
from server.kernels.plan import make_plan, segments_of, write_plan
from server.kernels.reference import limit

BASE = -1
POISONS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus_inf": float("-inf"),
    "huge": 1e20,
    "overflowing": 3e38,
}
# bf16 rounds three times (shrunk, delta, sum), each by half an eps; fp32 also sums in any order.
TOLERANCE = {torch.bfloat16: 2.0, torch.float16: 2.0, torch.float32: 16.0}


@dataclass
class Batch:
    """One step's rows and weights; `slots` says which slot each row belongs to."""

    slots: list[int]
    padding: int
    x: torch.Tensor
    y: torch.Tensor
    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    widths: tuple[int, ...]
    layout: str = "rows"  # of x and y in memory

    @property
    def rows_of(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for row, slot in enumerate(self.slots + [BASE] * self.padding):
            found.setdefault(slot, []).append(row)
        return found


def wrapper_for(
    tokens: list[int],
    sampled: list[int] | None = None,
    slot_count: int = 4,
    rank: int = 2,
    dtype: torch.dtype = torch.float32,
) -> PlannedPunicaWrapper:
    """A wrapper after vLLM's update_metadata; ids differ from slots, as in a live engine."""
    ids = [100 + slot for slot in range(slot_count)]
    sampled = tokens if sampled is None else sampled
    mapping = LoRAMapping(
        tuple(ids[slot] if slot >= 0 else 0 for slot in tokens),
        tuple(ids[slot] if slot >= 0 else 0 for slot in sampled),
        is_prefill=True,
    )
    config = SimpleNamespace(max_loras=slot_count, max_lora_rank=rank, lora_dtype=dtype)
    wrapper = PlannedPunicaWrapper(512, 64, "cpu", lora_config=config)
    wrapper.update_metadata(mapping, list(ids), slot_count + 1, 1000)
    return wrapper


def wrapper_of(batch: Batch) -> PlannedPunicaWrapper:
    """bf16 and a rank in eights are the native kernels' part, all else the reference's."""
    a = batch.a[0]
    return wrapper_for(batch.slots, slot_count=4, rank=a.size(2), dtype=a.dtype)


def noise(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values inside a wider tensor, so that rows are not neighbours in memory."""
    wide = torch.zeros(tensor.size(0), tensor.size(1) + 3, dtype=tensor.dtype)
    wide[:, 2:-1] = tensor
    return wide[:, 2:-1]


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, column after column in memory."""
    return tensor.t().clone(memory_format=torch.contiguous_format).t()


LAYOUTS = {"rows": torch.clone, "rows of wider ones": strided, "columns": turned}


@st.composite
def batches(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCE)) -> Batch:
    slot_count = draw(st.integers(1, 4))
    slots = draw(
        st.lists(st.integers(BASE, slot_count - 1), max_size=24)
        | st.lists(st.sampled_from([BASE, 0]), min_size=1, max_size=3)
    )
    if draw(st.booleans()):
        slots.sort()
    padding = draw(st.integers(0, 2))
    rank, width = draw(st.sampled_from([1, 3, 8, 16])), draw(st.sampled_from([1, 5, 32, 64]))
    widths = tuple(draw(st.lists(st.sampled_from([1, 7, 16, 48]), min_size=1, max_size=3)))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16))
    rows = len(slots) + padding
    x = noise(rows, width, seed=seed, dtype=dtype)
    y = noise(rows, sum(widths), seed=seed + 1, dtype=dtype)
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    x, y = LAYOUTS[layout](x), LAYOUTS[layout](y)
    a = tuple(noise(slot_count, 1, rank, width, seed=seed + 2, dtype=dtype) for _ in widths)
    b = tuple(noise(slot_count, 1, size, rank, seed=seed + 3, dtype=dtype) for size in widths)
    return Batch(slots, padding, x, y, a, b, widths, layout)


def oracle(batch: Batch, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact sums, and the sums of their terms' magnitudes: what rounding errors scale with."""
    exact, size = batch.y.double().clone(), batch.y.double().abs()
    for row, slot in enumerate(batch.slots):
        start, x = 0, batch.x[row].double()
        for a, b, width in zip(batch.a, batch.b, batch.widths, strict=True):
            if slot != BASE:
                own_a, own_b = a[slot, 0].double(), b[slot, 0].double()
                columns = slice(start, start + width)
                exact[row, columns] += scale * (own_b @ (own_a @ x))
                size[row, columns] += abs(scale) * (own_b.abs() @ (own_a.abs() @ x.abs()))
            start += width
    return exact, size


def assert_close(got: torch.Tensor, exact: torch.Tensor, size: torch.Tensor) -> None:
    allowed = TOLERANCE[got.dtype] * torch.finfo(got.dtype).eps * size
    assert bool(((got.double() - exact).abs() <= allowed).all())


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((left.contiguous().view(torch.uint8) == right.contiguous().view(torch.uint8)).all())


def apply_linear(batch: Batch, scale: float = 1.0) -> torch.Tensor:
    y = LAYOUTS[batch.layout](batch.y)
    wrapper_of(batch).add_lora_linear(y, batch.x, batch.a, batch.b, scale, batch.widths)
    return y


@given(batches(), st.sampled_from([1.0, 0.5, 2.0]))
def test_linear_equals_the_oracle_and_leaves_base_rows_alone(batch: Batch, scale: float) -> None:
    y = apply_linear(batch, scale)
    assert_close(y, *oracle(batch, scale))
    base = batch.rows_of.get(BASE, [])
    assert same_bits(y[base], batch.y[base])


@given(batches())
def test_shrink_then_expand_equals_the_oracle(batch: Batch) -> None:
    wrapper = wrapper_of(batch)
    rows, rank = batch.x.size(0), batch.b[0].size(-1)
    y, buffer = batch.y.clone(), torch.zeros(len(batch.widths), rows, rank)
    wrapper.add_shrink(buffer, batch.x, batch.a, 1.0)
    wrapper.add_expand(y, buffer, batch.b, batch.widths, add_input=True)
    assert_close(y, *oracle(batch))
    base = batch.rows_of.get(BASE, [])
    assert same_bits(y[base], batch.y[base])
    assert not buffer[:, base].any()


@given(batches((torch.bfloat16, torch.float32)), st.sampled_from(sorted(POISONS)), st.booleans())
def test_a_broken_adapter_changes_no_other_row_and_its_own_stay_finite(
    batch: Batch, poison: str, in_a: bool
) -> None:
    healthy = apply_linear(batch)
    for weights in batch.a if in_a else batch.b:
        weights[0] = POISONS[poison]
    y = apply_linear(batch)
    own = batch.rows_of.get(0, [])
    others = [row for row in range(len(y)) if row not in own]
    assert same_bits(y[others], healthy[others])
    assert bool(y[own].isfinite().all())
    assert bool(((y - batch.y)[own].abs() <= 1.01 * limit(y.dtype) + batch.y[own].abs()).all())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_delta_is_clamped_at_the_limit_of_its_type(dtype: torch.dtype) -> None:
    x, y = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 2, dtype=dtype)
    a = torch.full((1, 1, 1, 1), 200.0, dtype=dtype)
    b = torch.tensor([200.0, -200.0], dtype=dtype).reshape(1, 1, 2, 1)
    wrapper_for([0]).add_lora_linear(y, x, (a,), (b,), 1.0, (2,))
    assert y.tolist() == [[limit(dtype), -limit(dtype)]]


def test_expand_writes_at_its_offset_and_can_overwrite() -> None:
    y, x = torch.ones(3, 6), torch.ones(1, 3, 1)
    b = torch.full((1, 1, 2, 1), 5.0)
    wrapper_for([BASE, 0, BASE]).add_expand(y, x, (b,), (2,), offset_start=3, add_inputs=False)
    assert y.tolist() == [[1.0] * 6, [1.0, 1.0, 1.0, 5.0, 5.0, 1.0], [1.0] * 6]


def test_mixed_types_are_computed_in_the_wider_one() -> None:
    x, y = torch.full((1, 1), 1 + 2**-12), torch.zeros(1, 1)
    one = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    wrapper_for([0]).add_lora_linear(y, x, (one,), (one,), 1.0, (1,))
    assert y.item() == 1 + 2**-12


@given(batches())
def test_embeddings_use_the_looked_up_rows_of_adapters_only(batch: Batch) -> None:
    """vLLM looks base tokens up in slot 0, so their rows of `x` hold an adapter's numbers."""
    b, width = batch.b[0], batch.widths[0]
    looked_up = noise(len(batch.y), b.size(-1), seed=9, dtype=batch.y.dtype)
    y = batch.y[:, :width].clone()
    wrapper_of(batch).add_lora_embedding(y, looked_up, b, add_input=True)
    eye = torch.eye(b.size(-1), dtype=b.dtype).expand(len(b), 1, -1, -1)
    view = Batch(batch.slots, batch.padding, looked_up, batch.y[:, :width], (eye,), (b,), (width,))
    assert_close(y, *oracle(view))
    base = batch.rows_of.get(BASE, [])
    assert same_bits(y[base], batch.y[base, :width])


def logits_batch(sampled: list[int], dtype: torch.dtype = torch.float32) -> Batch:
    """An lm_head adapter over 10 tokens of vocabulary, which the logits pad to 12."""
    x = noise(len(sampled), 8, seed=1, dtype=dtype)
    y = noise(len(sampled), 12, seed=2, dtype=dtype)
    a, b = noise(4, 1, 2, 8, seed=3, dtype=dtype), noise(4, 1, 10, 2, seed=4, dtype=dtype)
    return Batch(sampled, 0, x, y, (a,), (b,), (10,))


def apply_logits(batch: Batch, tokens: list[int]) -> torch.Tensor:
    y = batch.y.clone()
    wrapper_for(tokens, batch.slots).add_lora_logits(y, batch.x, batch.a[0], batch.b[0], 1.0)
    return y


def test_sampled_logits_follow_the_requests_and_not_the_tokens() -> None:
    batch = logits_batch([BASE, 2, 0])
    y = apply_logits(batch, tokens=[BASE] * 5 + [2] * 3 + [0])
    padded = Batch(batch.slots, 0, batch.x, batch.y[:, :10], batch.a, batch.b, (10,))
    assert_close(y[:, :10], *oracle(padded))
    assert same_bits(y[0], batch.y[0])
    assert same_bits(y[:, 10:], batch.y[:, 10:])


@pytest.mark.skipif(not operators.has_native(), reason="no compiled kernels here (AVX2)")
def test_adapters_may_be_padded_to_more_vocabulary_than_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lora, "_REFERENCE", None)  # not needed for it
    x, y = noise(3, 16, seed=1, dtype=torch.bfloat16), noise(3, 12, seed=2, dtype=torch.bfloat16)
    a, b = noise(4, 1, 8, 16, seed=3, dtype=x.dtype), noise(4, 1, 20, 8, seed=4, dtype=x.dtype)
    got, wrapper = y.clone(), wrapper_for([0, BASE, 3], rank=8, dtype=x.dtype)
    wrapper.add_lora_logits(got, x, a, b, 1.0)
    expected = y.clone()
    wrapper.add_lora_logits(expected, x, a, b[:, :, :12].contiguous(), 1.0)
    assert same_bits(got, expected)
    assert [same_bits(*rows) for rows in zip(got, y, strict=True)] == [False, True, False]


@pytest.mark.parametrize("has_logits", [True, False])
def test_logits_are_untouched_if_no_adapter_of_the_batch_changes_them(has_logits: bool) -> None:
    """An adapter without lm_head has zeros there, so it is work that would not show."""
    batch = logits_batch([0, BASE, 0])
    wrapper = wrapper_for([0, BASE, 0])
    wrapper.describe_slot(0, 2, has_logits)
    wrapper.describe_slot(1, 2, True)  # which is not in the batch
    y = batch.y.clone()
    wrapper.add_lora_logits(y, batch.x, batch.a[0], batch.b[0], 1.0)
    assert same_bits(y[0], batch.y[0]) is not has_logits


def test_logits_of_a_base_batch_are_untouched() -> None:
    batch = logits_batch([BASE, BASE])
    batch.a[0].fill_(float("nan"))
    assert same_bits(apply_logits(batch, tokens=[BASE] * 6), batch.y)


@pytest.mark.parametrize(("start", "rows"), [(0, 2), (0, 4), (4, 2), (4, 3), (7, 1)])
def test_prompt_logits_follow_the_tokens_that_they_were_sliced_from(start: int, rows: int) -> None:
    """Rows are as many as requests in some cases: only their place in memory tells which."""
    tokens = [BASE] * 4 + [3] * 3 + [1]
    hidden = noise(len(tokens), 8, seed=1, dtype=torch.float32)
    batch = logits_batch(tokens)
    x, y = hidden[start : start + rows], batch.y[start : start + rows].clone()
    wrapper = wrapper_for(tokens, [BASE, 3, 1] if rows == 3 else [BASE, 3])
    wrapper.add_lora_logits(y, x, batch.a[0], batch.b[0], 1.0)
    own = tokens[start : start + rows]
    sliced = batch.y[start : start + rows, :10]
    assert_close(y[:, :10], *oracle(Batch(own, 0, x, sliced, batch.a, batch.b, (10,))))


def test_prompt_logits_of_a_whole_batch_follow_its_tokens() -> None:
    batch = logits_batch([1, 1, 1])
    y = batch.y.clone()
    wrapper_for([1, 1, 1], [1]).add_lora_logits(y, batch.x, batch.a[0], batch.b[0], 1.0)
    assert_close(
        y[:, :10],
        *oracle(Batch([1] * 3, 0, batch.x, batch.y[:, :10], batch.a, batch.b, (10,))),
    )


def test_logits_of_unknown_rows_get_an_adapter_only_if_there_is_just_one() -> None:
    batch = logits_batch([1, 1])
    y = batch.y.clone()
    wrapper_for([1] * 5, [1] * 3).add_lora_logits(y, batch.x, batch.a[0], batch.b[0], 1.0)
    assert same_bits(y, apply_logits(batch, tokens=[1] * 5))
    y = batch.y.clone()
    wrapper_for([BASE, 1, 1, 1, 1], [BASE, 1, 1]).add_lora_logits(
        y, batch.x, batch.a[0], batch.b[0], 1.0
    )
    assert same_bits(y, batch.y)


def test_an_adapters_own_classifier_head_replaces_the_bases_on_its_rows_only() -> None:
    slots = [BASE, 0, 1, 2, 1]
    x, y = noise(5, 8, seed=1, dtype=torch.float32), noise(5, 3, seed=2, dtype=torch.float32)
    weight, bias = noise(3, 1, 3, 8, seed=3, dtype=x.dtype), noise(3, 3, seed=4, dtype=x.dtype)
    weight[0] = float("nan")
    got, wrapper = y.clone(), wrapper_for(slots, slot_count=3)
    wrapper.apply_lora_full_linear(got, x, weight, bias, torch.tensor([False, True, True]))
    assert same_bits(got[:2], y[:2])
    assert not wrapper.repaired.any()
    for row in (2, 3, 4):
        slot = slots[row]
        torch.testing.assert_close(got[row], weight[slot, 0] @ x[row] + bias[slot])


def test_the_output_of_a_broken_classifier_head_is_finite_and_counted() -> None:
    x, y = noise(3, 8, seed=1, dtype=torch.float32), noise(3, 3, seed=2, dtype=torch.float32)
    weight = torch.full((1, 1, 3, 8), float("nan"))
    wrapper = wrapper_for([0, BASE, 0], slot_count=1)
    wrapper.apply_lora_full_linear(y, x, weight, torch.zeros(1, 3), torch.tensor([True]))
    assert y.isfinite().all()
    assert wrapper.repaired.tolist() == [6]


def test_too_few_rows_for_the_batch_are_refused_rather_than_matched_with_a_wrong_adapter() -> None:
    batch = logits_batch([0, 1, 2])
    with pytest.raises((IndexError, RuntimeError)):
        wrapper_for([0, 1, 2]).add_lora_linear(batch.y, batch.x[:2], batch.a, batch.b, 1.0, (10,))


def test_a_new_mapping_replaces_the_old_one() -> None:
    batch = logits_batch([0, 1, BASE])
    wrapper = wrapper_for([0, 0, 0])
    wrapper.update_metadata(LoRAMapping((7, 0, 0), (7, 0, 0)), [None, None, 7], 4, 1000)
    y = batch.y.clone()
    wrapper.add_lora_linear(y, batch.x, batch.a, batch.b, 1.0, (10,))
    assert not same_bits(y[0], batch.y[0])
    assert same_bits(y[1:], batch.y[1:])


def test_a_plan_names_each_slots_rows_and_its_rank_in_eights() -> None:
    plan = make_plan(max_rows=8, max_slots=6)
    write_plan(plan, torch.tensor([BASE, 2, 2, 5, BASE, 5, 0]), ranks=[16, 0, 3, 0, 0, 9])
    told = [(s.slot, s.rank, s.rows.tolist()) for s in segments_of(plan)]
    assert told == [(2, 8, [1, 2]), (5, 16, [3, 5]), (0, 16, [6])]
    write_plan(plan, torch.tensor([BASE] * 8), ranks=[16] * 6)
    assert segments_of(plan) == []


def test_a_plan_cuts_long_runs_and_has_room_for_every_batch() -> None:
    rows = 96 * 4 - 1
    for slots in (
        torch.zeros(rows, dtype=torch.long),
        torch.arange(rows) % 3,
        torch.arange(rows).clamp(max=97) // 97,  # 97 of one slot, one left over, and the others
        torch.tensor([0, 1] + [2] * (rows - 2)),
    ):
        plan = make_plan(max_rows=rows, max_slots=3)
        write_plan(plan, slots, ranks=[8, 16, 24])
        segments = segments_of(plan)
        assert all(1 <= len(segment.rows) <= 96 for segment in segments)
        assert all((slots[each.rows] == each.slot).all() for each in segments)
        assert sorted(torch.cat([each.rows for each in segments]).tolist()) == list(range(rows))
        firsts = [int(segment.rows[0]) for segment in segments]
        assert firsts == sorted(firsts)
