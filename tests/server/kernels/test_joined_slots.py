"""A layer's slots in one tensor: vLLM's views of them, and the results."""

from types import SimpleNamespace

import pytest
import torch
from vllm.config import LoRAConfig
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA

from server.kernels import operators, slots
from server.kernels.lora import PlannedPunicaWrapper
from server.kernels.slots import join

needs_native = pytest.mark.skipif(
    not operators.has_native(), reason="no compiled kernels for this processor (AVX2)"
)
INPUTS, OUTPUTS, RANK, SLOTS = 64, (48, 16, 16), 8, 2
VLLMS = BaseLinearLayerWithLoRA._apply_lora_to_output


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs for one test only."""
    for kind in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        monkeypatch.setattr(kind, "create_lora_weights", kind.create_lora_weights)
    monkeypatch.setattr(BaseLinearLayerWithLoRA, "_apply_lora_to_output", VLLMS)
    slots.install_joined_slots()


def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def layer_for(rows: list[int], dtype: torch.dtype = torch.bfloat16) -> BaseLinearLayerWithLoRA:
    """As vLLM's manager leaves it, for a batch whose rows have these slots (or -1)."""
    config = SimpleNamespace(max_lora_rank=RANK, max_loras=SLOTS, lora_dtype=dtype)
    layer = BaseLinearLayerWithLoRA.__new__(BaseLinearLayerWithLoRA)
    torch.nn.Module.__init__(layer)
    layer.punica_wrapper = PlannedPunicaWrapper(64, 64, "cpu", lora_config=config)
    adapters = tuple(slot + 1 for slot in rows)
    layer.punica_wrapper.update_metadata(LoRAMapping(adapters, adapters), [1, 2], SLOTS + 1, 1000)
    layer.n_slices, layer.output_slices = len(OUTPUTS), OUTPUTS
    shape = {"dtype": dtype}
    layer.lora_a_stacked = tuple(torch.zeros(SLOTS, 1, RANK, INPUTS, **shape) for _ in OUTPUTS)
    layer.lora_b_stacked = tuple(torch.zeros(SLOTS, 1, n, RANK, **shape) for n in OUTPUTS)
    join(layer)
    layer.joined_slots.copy_(noise(*layer.joined_slots.shape, dtype=dtype))
    return layer


def test_vllms_tensors_are_views_that_fill_one_tensor_without_a_gap() -> None:
    layer = layer_for([0])
    layer.joined_slots.zero_()
    parts = [*layer.lora_a_stacked, *layer.lora_b_stacked]
    assert [part.shape[2:] for part in parts] == [(RANK, INPUTS)] * 3 + [(n, RANK) for n in OUTPUTS]
    for part in parts:
        part += 1
    assert (layer.joined_slots == 1).all()
    parts[4][1] = 7
    assert not (layer.joined_slots[0] == 7).any()
    assert (layer.joined_slots[1] == 7).sum() == OUTPUTS[1] * RANK


def test_every_layer_with_slots_of_its_own_is_joined() -> None:
    """Slots made by super() are joined there; those of an unknown override would not be."""

    def subclasses(kind: type) -> set[type]:
        return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))

    makers = {
        kind.__name__
        for kind in subclasses(BaseLinearLayerWithLoRA)
        if "create_lora_weights" in vars(kind)
    }
    by_super = {"MergedQKVParallelLinearWithLoRA", "ClassificationHeadWithLoRA"}
    joined = {"BaseLinearLayerWithLoRA", "MergedColumnParallelLinearWithLoRA"}
    assert makers == joined | by_super


def test_a_merged_layer_is_made_with_joined_slots(installed) -> None:
    layer = MergedColumnParallelLinearWithLoRA.__new__(MergedColumnParallelLinearWithLoRA)
    torch.nn.Module.__init__(layer)
    layer.input_size, layer.output_slices, layer.n_slices = INPUTS, OUTPUTS, len(OUTPUTS)
    layer.device, layer.tp_size = "cpu", 1
    config = LoRAConfig(max_lora_rank=RANK, max_loras=SLOTS, lora_dtype=torch.bfloat16)
    layer.create_lora_weights(SLOTS, config)
    layer.joined_slots += 1
    assert all((part == 1).all() for part in (*layer.lora_a_stacked, *layer.lora_b_stacked))
    assert layer.joined_slots.shape == (SLOTS, RANK * (3 * INPUTS + sum(OUTPUTS)))


@needs_native
@pytest.mark.parametrize("shape", [(5, INPUTS), (1, 5, INPUTS)])
def test_joined_slots_give_the_same_bits_as_vllms_tensors(installed, shape) -> None:
    layer, x, base = layer_for([0, -1, 1, 1, -1]), noise(*shape), noise(*shape[:-1], sum(OUTPUTS))
    got = layer._apply_lora_to_output(x, base.clone())
    assert torch.equal(got, VLLMS(layer, x, base.clone()))
    changed = [
        not torch.equal(*rows) for rows in zip(got.view(5, -1), base.view(5, -1), strict=True)
    ]
    assert changed == [True, False, True, True, False]


@needs_native
@pytest.mark.parametrize("why", ["another type", "not compiled", "columns in memory", "gaps"])
def test_operands_that_the_compiled_kernels_do_not_take_go_vllms_way(
    installed, monkeypatch, why
) -> None:
    gone = []
    linear = PlannedPunicaWrapper.add_lora_linear
    monkeypatch.setattr(
        *(PlannedPunicaWrapper, "add_lora_linear"),
        lambda *given: (gone.append(why), linear(*given)),
    )
    dtype = torch.float32 if why == "another type" else torch.bfloat16
    layer = layer_for([1, -1, 0, -1], dtype)
    layer.punica_wrapper.is_native &= why != "not compiled"
    x, base = noise(4, INPUTS, dtype=dtype), noise(4, sum(OUTPUTS), dtype=dtype)
    if why == "columns in memory":
        x = x.t().contiguous().t()
    if why == "gaps":  # two batches of two rows, with a third between them
        x, base = x.view(2, 2, -1), noise(2, 3, sum(OUTPUTS), dtype=dtype)[:, :2]
    got = layer._apply_lora_to_output(x, base + 0 if why != "gaps" else base)
    assert gone == [why]
    rows = zip(got.view(4, -1), base.reshape(4, -1), strict=True)
    assert [torch.equal(*each) for each in rows] == [False, True, False, True]


@needs_native
def test_a_compiled_model_has_one_argument_for_all_adapters_of_a_layer(installed) -> None:
    """Beside x, the base's output, and what all layers share: the plan and the count of repairs."""
    arguments = []

    def count(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> object:
        arguments.append(len([each for each in graph.graph.nodes if each.op == "placeholder"]))
        return graph

    layer, x, base = layer_for([0, -1, 1]), noise(3, INPUTS), noise(3, sum(OUTPUTS))
    with torch.no_grad():
        got = torch.compile(layer._apply_lora_to_output, backend=count, fullgraph=True)(x, base + 0)
        assert torch.equal(got, VLLMS(layer, x, base + 0))
    assert arguments == [5]
