"""A filled or cleared slot holds the same as after vLLM's own methods."""

from types import SimpleNamespace

import pytest
import torch
from vllm.lora.layers import MergedQKVParallelLinearWithLoRA, RowParallelLinearWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from server.kernels import slots
from server.kernels.slots import join
from server.kernels.staging import parts_of

INPUTS, RANK, SLOTS = 24, 8, 3
MERGED = MergedQKVParallelLinearWithLoRA.set_lora
BASE = BaseLinearLayerWithLoRA.set_lora


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer(kind, outputs, tp_size=1):
    """As vLLM's manager leaves it, with NaN in every slot."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.n_slices, made.tp_size = len(outputs), tp_size
    made.lora_a_stacked = tuple(torch.zeros(SLOTS, 1, RANK, INPUTS) for _ in outputs)
    made.lora_b_stacked = tuple(torch.zeros(SLOTS, 1, n, RANK) for n in outputs)
    join(made)
    made.joined_slots.fill_(torch.nan)
    return made


def pair(outputs, rank):
    return noise(rank, INPUTS), noise(outputs, rank)


def slots_of(layer):
    return [*layer.lora_a_stacked, *layer.lora_b_stacked]


def both(kind, outputs, vllms, a, b, index=1):
    """The slots as ours leaves them, and as vLLM's does."""
    ours, theirs = layer(kind, outputs), layer(kind, outputs)
    slots._filling(vllms)(ours, index, a, b)
    theirs.reset_lora = lambda slot: [stacked[slot].zero_() for stacked in slots_of(theirs)]
    vllms(theirs, index, a, b)
    return slots_of(ours), slots_of(theirs)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0))


@pytest.mark.parametrize("rank", [1, 5, RANK])
def test_a_slot_is_filled_as_vllm_does_and_the_others_are_untouched(rank):
    a, b = pair(10, rank)
    ours, theirs = both(RowParallelLinearWithLoRA, [10], BASE, a, b)
    assert_same(ours, theirs)
    assert not any(stacked[1].isnan().any() for stacked in ours)
    assert all(stacked[0].isnan().all() and stacked[2].isnan().all() for stacked in ours)


@pytest.mark.parametrize("ranks", [(RANK, RANK, RANK), (2, None, RANK), (None, None, 3)])
def test_a_merged_layer_is_zero_where_a_part_has_no_adapter(ranks):
    outputs = [16, 8, 8]
    pairs = [
        pair(n, rank) if rank else (None, None) for n, rank in zip(outputs, ranks, strict=True)
    ]
    a, b = map(list, zip(*pairs, strict=True))
    ours, theirs = both(MergedQKVParallelLinearWithLoRA, outputs, MERGED, a, b)
    assert_same(ours, theirs)
    for part, rank in enumerate(ranks):
        assert (ours[part][1] == 0).all() == (rank is None)


def test_one_slot_after_another_gets_its_own():
    made = layer(RowParallelLinearWithLoRA, [10])
    for index in range(SLOTS):
        slots._filling(BASE)(made, index, *(t + index for t in pair(10, RANK)))
    slots._reset(made, 1)
    a, b = pair(10, RANK)
    assert torch.equal(made.lora_a_stacked[0][2, 0], a + 2)
    assert torch.equal(made.lora_b_stacked[0][0, 0], b)
    assert not any(stacked[1].any() for stacked in slots_of(made))


@pytest.mark.parametrize(("tp_size", "parts"), [(2, 3), (1, 2)])
def test_weights_that_need_splitting_are_left_to_vllm(tp_size, parts):
    told = []
    made = layer(MergedQKVParallelLinearWithLoRA, [16, 8, 8], tp_size)
    given = (made, 1, [None] * parts, [None] * parts)
    slots._filling(lambda *arguments: told.append(arguments))(*given)
    assert told == [given]
    assert all(stacked.isnan().all() for stacked in slots_of(made))


def test_weights_of_one_part_or_of_several_are_a_list():
    weights = SimpleNamespace(lora_a=noise(2, 3))
    assert parts_of(weights.lora_a) == [weights.lora_a]
    assert parts_of([None, weights.lora_a]) == [None, weights.lora_a]
