"""A layer of vLLM's with NF4 weights and LoRA: when both are one operator, with the same result."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm_bnb_plugin.quantization.linear import BitsAndBytesLinearMethod

from server.kernels import nf4, operators
from server.kernels.lora import PlannedPunicaWrapper
from server.kernels.slots import join

pytestmark = pytest.mark.skipif(
    not operators.has_native(), reason="no compiled kernels for this processor (AVX2)"
)
INPUTS, OUTPUTS, RANK, SLOTS = 128, 48, 8, 2
Apply = Callable[..., torch.Tensor]


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Apply:
    """vLLM's own way for such a layer, once the plugin has put its own in that place."""
    for name in ("apply", "process_weights_after_loading"):
        monkeypatch.setattr(BitsAndBytesLinearMethod, name, getattr(BitsAndBytesLinearMethod, name))
    own = BaseLinearLayerWithLoRA._apply_sync
    assert own.__module__ != nf4.__name__, "installed by another test: there is nothing to compare"
    monkeypatch.setattr(BaseLinearLayerWithLoRA, "_apply_sync", own)
    nf4.install()
    nf4.install_beside_adapters()
    return own


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the wrapper's two ways were gone."""
    gone: list[str] = []

    def recorded(name: str, way: Apply) -> Apply:
        def call(*args: object) -> torch.Tensor:
            gone.append(name)
            return way(*args)

        return call

    for name in ("add_lora_linear", "nf4_lora_linear"):
        way = getattr(PlannedPunicaWrapper, name)
        monkeypatch.setattr(PlannedPunicaWrapper, name, recorded(name, way))
    return gone


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def layer_for(rows: list[int], *, packed: bool = True) -> BaseLinearLayerWithLoRA:
    """As vLLM's manager leaves it, for a batch whose rows have these slots (or -1)."""
    codes, state = quantize_4bit(noise(OUTPUTS, INPUTS), quant_type="nf4", blocksize=64)
    base = SimpleNamespace(weight=torch.nn.Parameter(codes, requires_grad=False))
    base.weight.bnb_quant_state = {0: state}
    base.weight.bnb_shard_offsets = torch.tensor([0, codes.size(0)])
    base.quant_method = BitsAndBytesLinearMethod.__new__(BitsAndBytesLinearMethod)
    base.quant_method.quant_config = SimpleNamespace(load_in_8bit=False)
    if packed:
        base.quant_method.process_weights_after_loading(base)
    config = SimpleNamespace(max_lora_rank=RANK, max_loras=SLOTS, lora_dtype=torch.bfloat16)
    wrapper = PlannedPunicaWrapper(64, 64, "cpu", lora_config=config)
    adapters = tuple(slot + 1 for slot in rows)
    wrapper.update_metadata(LoRAMapping(adapters, adapters), [1, 2], SLOTS + 1, 1000)
    layer = BaseLinearLayerWithLoRA.__new__(BaseLinearLayerWithLoRA)
    torch.nn.Module.__init__(layer)
    layer.base_layer, layer.punica_wrapper = base, wrapper
    layer.n_slices, layer.output_slices = 1, (OUTPUTS,)
    layer.lora_a_stacked = (noise(SLOTS, 1, RANK, INPUTS),)
    layer.lora_b_stacked = (noise(SLOTS, 1, OUTPUTS, RANK),)
    join(layer)
    layer.joined_slots.copy_(noise(*layer.joined_slots.shape))
    return layer


@pytest.mark.parametrize("shape", [(5, INPUTS), (1, 5, INPUTS)])
def test_packed_weights_and_lora_are_one_operator_with_the_same_result(apart, calls, shape):
    layer, x = layer_for([0, -1, 1, 1, -1]), noise(*shape)
    got = layer._apply_sync(x)
    assert calls == ["nf4_lora_linear"]
    assert torch.equal(got, apart(layer, x))
    base = layer.base_layer.quant_method.apply(layer.base_layer, x)
    adapted = [
        not torch.equal(*pair) for pair in zip(got.view(5, -1), base.view(5, -1), strict=True)
    ]
    assert adapted == [True, False, True, True, False]


def test_a_layer_that_is_not_packed_stays_two_operators(apart, calls):
    layer, x = layer_for([0, 1], packed=False), noise(2, INPUTS)
    assert torch.equal(layer._apply_sync(x), apart(layer, x))
    assert set(calls) == {"add_lora_linear"}


def test_a_bias_stays_with_the_base_s_product(apart, calls):
    layer, x, bias = layer_for([0, 1]), noise(2, INPUTS), noise(OUTPUTS)
    assert torch.equal(layer._apply_sync(x, bias), apart(layer, x, bias))
    assert set(calls) == {"add_lora_linear"}


def test_lora_that_pytorch_computes_stays_an_operator_of_its_own(apart, calls):
    layer, x = layer_for([0, 1]), noise(2, INPUTS)
    layer.punica_wrapper.is_native = False  # as in an engine of another type, or an odd rank
    assert torch.equal(layer._apply_sync(x), apart(layer, x))
    assert set(calls) == {"add_lora_linear"}


def test_an_engine_of_another_type_stays_two_operators(apart, calls):
    layer, x = layer_for([-1, 1]), noise(2, INPUTS).float()
    got = layer._apply_sync(x)
    assert got.dtype == torch.float32
    base = layer.base_layer.quant_method.apply(layer.base_layer, x)
    assert [torch.equal(*pair) for pair in zip(got, base, strict=True)] == [True, False]
    assert set(calls) == {"add_lora_linear"}


def test_inputs_may_lie_in_memory_column_by_column(apart, calls):
    layer, x = layer_for([0, -1, 1]), noise(3, INPUTS)
    turned = x.t().contiguous().t()
    assert torch.equal(layer._apply_sync(turned), layer._apply_sync(x))
    assert set(calls) == {"nf4_lora_linear"}
    plain = layer.base_layer.quant_method.apply
    assert torch.equal(plain(layer.base_layer, turned), plain(layer.base_layer, x))
