"""NF4 layers: the packed product against a float64 oracle, and which layers are packed at all."""

from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hypothesis import given
from hypothesis import strategies as st
from vllm_bnb_plugin.quantization.linear import BitsAndBytesLinearMethod

from server.kernels import nf4, operators

pytestmark = pytest.mark.skipif(
    not operators.has_native(), reason="no compiled kernels for this processor (AVX2)"
)
ENOUGH = 480  # numbers, for two errors to be compared: 1.4 is usual then, 1.7 was the most seen


def quantized(n: int, k: int, seed: int, quant_type: str = "nf4", blocksize: int = 64):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return quantize_4bit(
        weight, quant_type=quant_type, blocksize=blocksize, compress_statistics=False
    )


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@given(
    rows=st.integers(0, 110),
    n=st.sampled_from([16, 48, 160]),
    k=st.sampled_from([64, 192, 512]),
    seed=st.integers(0, 2**16),
)
def test_the_packed_product_is_as_exact_as_dequantising_to_bf16(native, rows, n, k, seed):
    codes, state = quantized(n, k, seed)
    packed = torch.ops.lorry.nf4_pack(codes.flatten(), state.absmax.float(), n, k)
    wide = torch.randn(rows, k + 8, generator=torch.Generator().manual_seed(seed)).bfloat16()
    x = wide[:, 3 : 3 + k]  # rows are not neighbours in memory
    y = torch.ops.lorry.nf4_linear(x, packed)
    assert (y.shape, y.dtype) == ((rows, n), torch.bfloat16)
    if rows:
        exact = x.double() @ dequantize_4bit(codes, state).double().t()
        unfused = x @ dequantize_4bit(codes, state).bfloat16().t()
        # Of a few numbers the other's error may be small by chance: there, a step of bf16.
        bound = 2 * relative_error(unfused, exact) if y.numel() >= ENOUGH else 2**-7
        assert relative_error(y, exact) <= bound


@pytest.mark.parametrize("rows", [1, 3, 5, 13, 60])
def test_non_finite_values_of_a_row_affect_no_other(native, rows):
    codes, state = quantized(32, 128, seed=0)
    packed = torch.ops.lorry.nf4_pack(codes.flatten(), state.absmax.float(), 32, 128)
    x = torch.randn(rows, 128).bfloat16()
    healthy = torch.ops.lorry.nf4_linear(x, packed)
    for row in range(rows):
        broken = x.clone()
        broken[row, 5] = torch.nan
        y = torch.ops.lorry.nf4_linear(broken, packed)
        assert y[row].isnan().all()
        y[row] = healthy[row]
        assert torch.equal(y, healthy)


@pytest.mark.parametrize("native", ["AMX-BF16"], indirect=True)
def test_with_tiles_a_row_has_the_same_bits_in_every_batch(native):
    codes, state = quantized(48, 512, seed=0)
    packed = torch.ops.lorry.nf4_pack(codes.flatten(), state.absmax.float(), 48, 512)
    x = torch.randn(300, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = torch.ops.lorry.nf4_linear(x, packed)
    for rows in (1, 2, 16, 17, 31, 33, 128, 129, 255):
        assert torch.equal(torch.ops.lorry.nf4_linear(x[-rows:], packed), y[-rows:])


@pytest.mark.parametrize("native", ["AMX-BF16"], indirect=True)
def test_with_tiles_blocks_are_added_in_order_for_every_number_of_blocks(native):
    """Here the order shows: the half is lost beside what the first two blocks have before."""
    n, k = 16, 3 * 64
    packed = torch.ops.lorry.nf4_pack(
        torch.full((n * k // 2,), 0xFF, dtype=torch.uint8), torch.ones(n * k // 64), n, k
    )
    x = torch.zeros(17, k, dtype=torch.bfloat16)
    x[:, 0], x[:, 64], x[:, 128] = -(2.0**24), 2.0**24, 0.5
    many = torch.ops.lorry.nf4_linear(x, packed)
    assert many.ne(0).all()
    for rows in (1, 16):
        assert torch.equal(torch.ops.lorry.nf4_linear(x[:rows], packed), many[:rows])


def test_nf4_operators_pass_opcheck():
    codes, state = quantized(32, 64, seed=0)
    packed = torch.ops.lorry.nf4_pack(codes.flatten(), state.absmax.float(), 32, 64)
    x = torch.randn(3, 64).bfloat16()
    torch.library.opcheck(torch.ops.lorry.nf4_linear.default, (x, packed))


def test_operands_that_the_kernel_does_not_take_are_refused():
    codes, state = quantized(32, 64, seed=0)
    absmax = state.absmax.float()
    for n, k in ((24, 64), (32, 96), (64, 64)):
        with pytest.raises(RuntimeError):
            torch.ops.lorry.nf4_pack(codes.flatten(), absmax, n, k)
    with pytest.raises(RuntimeError):
        torch.ops.lorry.nf4_pack(codes.flatten()[:0], absmax.flatten()[:0], 32, 0)
    packed = torch.ops.lorry.nf4_pack(codes.flatten(), absmax, 32, 64)
    good = torch.randn(3, 64).bfloat16()
    aside = torch.cat([packed.new_zeros(1), packed.flatten()])[1:].view_as(packed)
    for x, weights in (
        (torch.randn(3, 64), packed),
        (torch.randn(3, 32).bfloat16(), packed),
        (torch.randn(64).bfloat16(), packed),
        (good, packed.float()),
        (good, aside),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.lorry.nf4_linear(x, weights)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001])
def test_a_nan_scale_gives_nan(native, bits):
    codes, state = quantized(16, 64, seed=0)
    absmax = state.absmax.float()
    absmax.view(torch.int32)[3] = bits
    packed = torch.ops.lorry.nf4_pack(codes.flatten(), absmax, 16, 64)
    y = torch.ops.lorry.nf4_linear(torch.ones(9, 64).bfloat16(), packed)
    assert y.isnan().all(0).nonzero().flatten().tolist() == [3]


def layer_of(*shards):
    """A layer as vLLM's loader leaves it: shards one after another, their states in any order."""
    weight = torch.nn.Parameter(torch.cat([codes for codes, _ in shards]), requires_grad=False)
    states = {number: shards[number][1] for number in reversed(range(len(shards)))}
    sizes = [0, *(codes.size(0) for codes, _ in shards)]
    weight.bnb_quant_state = states
    weight.bnb_shard_offsets = torch.tensor(sizes).cumsum(0)
    return SimpleNamespace(weight=weight)


@pytest.fixture
def method(monkeypatch):
    """vLLM's method for NF4 layers, changed as the plugin changes it."""
    for name in ("apply", "process_weights_after_loading"):
        monkeypatch.setattr(BitsAndBytesLinearMethod, name, getattr(BitsAndBytesLinearMethod, name))
    stock = BitsAndBytesLinearMethod.apply
    nf4.install()
    method = BitsAndBytesLinearMethod.__new__(BitsAndBytesLinearMethod)
    method.quant_config = SimpleNamespace(load_in_8bit=False)
    return method, stock


def test_a_merged_layer_is_packed_shard_by_shard_and_answers_as_before(method):
    method, stock = method
    layer = layer_of(quantized(64, 128, 1), quantized(32, 128, 2), quantized(16, 128, 3))
    x, bias = torch.randn(2, 3, 128).bfloat16(), torch.randn(112).bfloat16()
    before = stock(method, layer, x, bias)
    bytes_before = layer.weight.nbytes
    method.process_weights_after_loading(layer)
    after = method.apply(layer, x, bias)
    assert after.shape == before.shape
    assert relative_error(after, before.double()) < 0.01
    # One copy: the codes and an fp32 scale per block of 64, and nothing beside it.
    assert layer.weight.nbytes == bytes_before * 9 // 8
    assert not hasattr(layer.weight, "bnb_quant_state")


@pytest.mark.parametrize(
    "shard",
    [
        quantized(24, 64, 1),  # columns not in sixteens
        quantized(32, 96, 2),  # a block would reach into the next row
        quantized(32, 128, 3, quant_type="fp4"),
        quantized(32, 128, 4, blocksize=128),
    ],
)
def test_a_layer_of_another_shape_is_not_packed(method, shard):
    method, stock = method
    layer = layer_of(shard)
    x = torch.randn(3, shard[1].shape[1]).bfloat16()
    before = layer.weight
    method.process_weights_after_loading(layer)
    assert layer.weight is before
    torch.testing.assert_close(method.apply(layer, x), stock(method, layer, x))


def test_without_compiled_kernels_nothing_is_packed_and_one_line_reports_it(
    method, monkeypatch, caplog
):
    method, _ = method
    monkeypatch.setattr(operators, "has_native", lambda: False)
    monkeypatch.setattr(nf4.logger, "disabled", False)
    layer = layer_of(quantized(32, 64, 1))
    before = layer.weight
    method.process_weights_after_loading(layer)
    method.process_weights_after_loading(layer)
    assert layer.weight is before
    (record,) = caplog.records
    assert "bitsandbytes' own serve" in record.getMessage()
