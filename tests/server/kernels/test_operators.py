"""The compiled kernels against the plain PyTorch ones, and both under torch.compile."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.kernels import operators, stamp
from server.kernels.plan import make_plan, segments_of, write_plan
from server.preflight import read_cpu_flags

needs_native = pytest.mark.skipif(
    not operators.has_native(), reason="no compiled kernels for this processor (AVX2)"
)
BOUND = 8192.0
Arguments = tuple[object, ...]
Matrices = list[torch.Tensor]


def noise(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (values * scale).bfloat16()


def step(rows: int, ranks: list[int], widths: tuple[int, ...], width: int, seed: int) -> Arguments:
    """Operands of one linear; a slot's matrices are zero beyond its own rank, as in vLLM."""
    slots = torch.randint(-1, len(ranks), (rows,), generator=torch.Generator().manual_seed(seed))
    plan = make_plan(rows, len(ranks))
    write_plan(plan, slots, ranks)
    most = -(-max(ranks) // 8) * 8
    a = [noise(len(ranks), 1, most, width, seed=seed + 1, scale=width**-0.5) for _ in widths]
    b = [noise(len(ranks), 1, n, most, seed=seed + 2, scale=most**-0.5) for n in widths]
    for slot, rank in enumerate(ranks):
        for own_a, own_b in zip(a, b, strict=True):
            own_a[slot, :, rank:] = 0
            own_b[slot, :, :, rank:] = 0
    y, x = noise(rows, sum(widths), seed=seed + 3), noise(rows, width, seed=seed + 4)
    repaired = torch.zeros(len(ranks), dtype=torch.long)
    return y, x, a, b, plan, repaired, 1.0, BOUND, True


def joined(a: Matrices, b: Matrices) -> tuple[torch.Tensor, list[int], int]:
    """As a layer has them (server/kernels/slots.py), with each part's outputs and ranks."""
    slots = torch.cat([each.flatten(1) for each in (*a, *b)], 1)
    return slots, [each.size(2) for each in b], a[0].size(2)


@pytest.mark.skipif(not {"avx2", "fma"} <= read_cpu_flags(), reason="a processor without AVX2")
def test_compiled_kernels_exist_if_the_processor_supports_them():
    """Else every test that needs them would be skipped silently."""
    assert operators.has_native()
    flags = {"AMX-BF16": "amx_bf16", "AVX512-BF16": "avx512_bf16", "AVX2": "avx2"}
    best = next(name for name, flag in flags.items() if flag in read_cpu_flags())
    assert torch.ops.lorry.instructions() == best


@pytest.mark.parametrize("what", ["don't load", "were built from other sources"])
def test_unusable_kernels_are_skipped_and_one_line_reports_it(monkeypatch, caplog, tmp_path, what):
    library = tmp_path / "_broken.so"
    of = stamp.digest() if what == "don't load" else "0123456789abcdef"
    library.write_bytes(f"not a library, but has lorry kernels {of} in it".encode())
    monkeypatch.setattr(operators.util, "find_spec", lambda name: SimpleNamespace(origin=library))
    assert operators.has_native.__wrapped__() is False
    (record,) = caplog.records
    assert what in record.getMessage()
    assert "run `make setup`" in record.getMessage()


def test_unreadable_kernels_are_skipped(monkeypatch, caplog, tmp_path):
    folder = SimpleNamespace(origin=tmp_path)
    monkeypatch.setattr(operators.util, "find_spec", lambda name: folder)
    assert operators.has_native.__wrapped__() is False
    assert "don't load" in caplog.records[0].getMessage()


def test_another_schema_changes_the_kind_of_operators(monkeypatch):
    kinds = operators.kinds()
    assert kinds == operators.kinds()
    monkeypatch.setattr(operators, "_SCHEMAS", [*operators._SCHEMAS[1:], "other() -> ()"])
    assert operators.kinds() != kinds


@given(
    rows=st.integers(1, 130) | st.integers(130, 300),
    ranks=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    widths=st.lists(st.sampled_from([1, 15, 16, 33, 40, 520]), min_size=1, max_size=3).map(tuple),
    width=st.sampled_from([1, 15, 16, 17, 31, 32, 100, 256]),
    add=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_compiled_lora_equals_the_reference(native, rows, ranks, widths, width, add, seed):
    *ours, _ = step(rows, ranks, widths, width, seed)
    *theirs, _ = step(rows, ranks, widths, width, seed)
    torch.ops.lorry.lora_linear_(*ours, add)
    torch.ops.lorry.lora_linear_reference_(*theirs, add)
    torch.testing.assert_close(ours[0].float(), theirs[0].float(), rtol=0.02, atol=0.03)
    assert not ours[5].any()


def test_nothing_is_read_or_written_beyond_the_tensors_columns(native):
    """Columns 3 to 43 of wider rows, all else NaN."""
    y, x, *rest = step(rows=20, ranks=[8, 24], widths=(40,), width=29, seed=7)
    wide_x, wide_y = torch.full((20, 64), torch.nan).bfloat16(), torch.full((20, 64), 7).bfloat16()
    inner_x, inner_y = wide_x[:, 3:32], wide_y[:, 3:43]
    inner_x.copy_(x)
    inner_y.copy_(y)
    torch.ops.lorry.lora_linear_(inner_y, inner_x, *rest)
    torch.ops.lorry.lora_linear_(y, x, *rest)
    assert torch.equal(inner_y, y)
    assert (wide_y[:, :3] == 7).all()
    assert (wide_y[:, 43:] == 7).all()


def test_non_finite_values_of_the_base_stay(native):
    y, *rest = step(rows=12, ranks=[8], widths=(40,), width=32, seed=8)
    expected = y.clone()
    torch.ops.lorry.lora_linear_(expected, *rest)
    for column, value in ((0, torch.nan), (39, torch.nan), (7, torch.inf), (38, -torch.inf)):
        y[:, column] = expected[:, column] = value
    rows = torch.cat([segment.rows for segment in segments_of(rest[3])])
    torch.ops.lorry.lora_linear_(y, *rest)
    torch.testing.assert_close(y[rows], expected[rows], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("columns", [slice(0, 5), slice(35, 40)])  # of a whole tile, of its rest
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -1e30, 1e20])
def test_both_repair_and_count_the_same_values(native, poison, columns):
    counts = []
    for linear in (torch.ops.lorry.lora_linear_, torch.ops.lorry.lora_linear_reference_):
        operands = step(rows=40, ranks=[8, 8], widths=(40,), width=64, seed=1)
        y, _, _, b, plan, repaired, *_ = operands
        before, healthy = y.clone(), y.clone()
        linear(healthy, *operands[1:])
        b[0][1, 0, columns] = poison  # five columns of the second slot
        linear(*operands)
        assert y.isfinite().all()
        assert (y - before).abs().max() <= BOUND
        others = [c for c in range(40) if c not in range(40)[columns]]
        assert torch.equal(y[:, others], healthy[:, others])
        counts.append(repaired.tolist())
        rows_of_slot_1 = sum(len(each.rows) for each in segments_of(plan) if each.slot == 1)
    assert counts == [[0, 5 * rows_of_slot_1]] * 2


@needs_native
def test_a_plan_beyond_the_given_rows_is_refused():
    y, x, *rest = step(rows=9, ranks=[8], widths=(16,), width=32, seed=2)
    with pytest.raises(RuntimeError, match="fewer rows than the batch has tokens"):
        torch.ops.lorry.lora_linear_(y[:3], x[:3], *rest)


@needs_native
@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("segments", -1),
        ("segments", 1 << 28),
        ("rows_start", 3),
        ("rows_start", 1 << 28),
        ("slot", -1),
        ("slot", 1),
        ("slot", 1 << 28),
        ("rank", -8),
        ("rank", 3),
        ("rank", 16),
        ("first", 1),
        ("count", -1),
        ("count", 1 << 28),
        ("row", -1),
        ("row", 4),
    ],
)
def test_a_plan_that_leaves_the_operands_is_refused(word, value):
    y, x, a, b, _, *rest = step(rows=4, ranks=[8], widths=(16,), width=32, seed=3)
    plan = make_plan(4, 1)
    write_plan(plan, torch.tensor([0, 0, -1, 0]), [8])
    words = ["segments", "rows_start", "slot", "rank", "first", "count", "row"]
    before = y.clone()
    plan[words.index(word)] = value
    with pytest.raises(RuntimeError, match=r"plan is not whole|no such|fewer rows"):
        torch.ops.lorry.lora_linear_(y, x, a, b, plan, *rest)
    assert torch.equal(y, before)


@needs_native
def test_a_batch_without_adapters_never_reads_the_adapters_operands():
    """Two adapters of no layer at all would be an error."""
    y, x, _, _, plan, *rest = step(rows=4, ranks=[8], widths=(16,), width=32, seed=3)
    with pytest.raises(RuntimeError):
        torch.ops.lorry.lora_linear_(y, x, [], [], plan, *rest)
    write_plan(plan, torch.full((4,), -1), [8])
    torch.ops.lorry.lora_linear_(y, x, [], [], plan, *rest)
    codes = torch.zeros(16 * 64 // 2, dtype=torch.uint8)
    packed = torch.ops.lorry.nf4_pack(codes, torch.ones(16), 16, 64)
    no_slots = (noise(0, 0, seed=1), [], 8)
    torch.ops.lorry.lora_layer_(y, x, *no_slots, plan, rest[0], BOUND)
    torch.ops.lorry.nf4_lora_linear(noise(4, 64, seed=1), packed, *no_slots, plan, rest[0], BOUND)


@needs_native
def test_operands_that_the_kernel_does_not_take_are_refused():
    y, x, a, b, *rest = step(rows=4, ranks=[8], widths=(16,), width=32, seed=3)
    for wrong in (
        (y.float(), x, a, b),
        (y, x[:, :16], a, b),
        (y, x, a, [b[0][:, :, :, ::2]]),
        (y[:, :8], x, a, b),
        (y, x, [a[0].float()], b),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.lorry.lora_linear_(*wrong, *rest)
    plan, repaired, *numbers = rest
    for tells in (
        (plan, repaired.int()),
        (plan, repaired[:0]),
        (plan[:0], repaired),
        (plan.long(), repaired),
        (torch.stack([plan, plan], 1)[:, 0], repaired),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.lorry.lora_linear_(y, x, a, b, *tells, *numbers)


@pytest.mark.parametrize("rows", [1, 3, 6, 13, 40])
def test_non_finite_lora_values_of_a_row_affect_no_other(native, rows):
    y, x, a, b, plan, *rest = step(rows, [16], (48,), 64, seed=13)
    write_plan(plan, torch.zeros(rows, dtype=torch.long), [16])
    healthy = y.clone()
    torch.ops.lorry.lora_linear_(healthy, x, a, b, plan, *rest)
    for row, value in ((0, torch.nan), (rows - 1, torch.inf)):
        got, broken = y.clone(), x.clone()
        broken[row, 5] = value
        torch.ops.lorry.lora_linear_(got, broken, a, b, plan, *rest)
        assert got.isfinite().all()
        got[row] = healthy[row]
        assert torch.equal(got, healthy)


def test_an_adapter_without_ranks_adds_nothing(native):
    for rows in (3, 20):
        y, x, a, b, plan, *rest = step(rows, [8], (40,), 32, seed=12)
        write_plan(plan, torch.zeros(rows, dtype=torch.long), [0])
        before = y.clone()
        torch.ops.lorry.lora_linear_(y, x, a, b, plan, *rest)
        assert torch.equal(y, before)


@pytest.mark.parametrize("rows", [3, 130])
@pytest.mark.parametrize("widths", [(48,), (33, 16), (40, 8, 8)])
def test_joined_slots_give_the_same_bits_as_separate_matrices(native, widths, rows):
    y, x, a, b, plan, repaired, *numbers = step(rows, [16, 5, 8], widths, 96, seed=14)
    b[-1][1, 0, 3] = torch.inf
    got, counts = y.clone(), repaired.clone()
    torch.ops.lorry.lora_linear_(y, x, a, b, plan, repaired, *numbers)
    torch.ops.lorry.lora_layer_(got, x, *joined(a, b), plan, counts, BOUND)
    assert torch.equal(got, y)
    assert torch.equal(counts, repaired)
    assert rows < 24 or counts[1] > 0


@needs_native
def test_joined_slots_of_another_layer_are_refused():
    y, x, a, b, plan, repaired, *_ = step(4, [8, 8], (16, 8), 32, seed=3)
    slots, columns, ranks = joined(a, b)
    torch.ops.lorry.lora_layer_(y.clone(), x, slots, columns, ranks, plan, repaired, BOUND)
    before = y.clone()
    for wrong in (
        (x, slots[:, :-8].contiguous(), columns, ranks),
        (x, torch.cat([slots, slots], 1)[:, : slots.size(1)], columns, ranks),
        (x, slots.float(), columns, ranks),
        (x, slots[0], columns, ranks),
        (x, slots[:0], columns, ranks),
        (x, slots, [], ranks),
        (x, slots, [16], ranks),
        (x, slots, [32, -8], ranks),
        (x, slots, [2**62, 2**62], ranks),
        (x, slots[:, :0], [1 << 40], 0),
        (x, slots, [16, 8], 16),
        (x, slots[:, : slots.size(1) // 2].contiguous(), columns, 4),
        (x[:, :10], slots, columns, ranks),  # by its size it could be twice the ranks
        (x[0], slots, columns, ranks),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.lorry.lora_layer_(y, *wrong, plan, repaired, BOUND)
    assert torch.equal(y, before)


@needs_native
def test_lora_layer_passes_opcheck():
    y, x, a, b, plan, repaired, *_ = step(rows=6, ranks=[8, 3], widths=(16, 8), width=32, seed=4)
    operands = (y, x, *joined(a, b), plan, repaired, BOUND)
    torch.library.opcheck(torch.ops.lorry.lora_layer_.default, operands)


@pytest.mark.parametrize("name", ["lora_linear_", "lora_linear_reference_"])
def test_lora_operators_pass_opcheck(name):
    if name == "lora_linear_" and not operators.has_native():
        pytest.skip("no compiled kernels for this processor (AVX2)")
    operands = step(rows=6, ranks=[8, 3], widths=(16, 8), width=32, seed=4)
    torch.library.opcheck(getattr(torch.ops.lorry, name).default, operands)


def packed_weights(n: int, k: int) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(0)
    codes = torch.randint(256, (n * k // 2,), generator=seeded, dtype=torch.uint8)
    absmax = torch.rand(n * k // operators.BLOCK_WEIGHTS, generator=seeded) / 8
    return torch.ops.lorry.nf4_pack(codes, absmax, n, k)


@pytest.mark.parametrize("rows", [1, 3, 24, 130, 300])
def test_nf4_and_lora_in_one_operator_give_the_same_bits_as_two(native, rows):
    _, x, a, b, plan, repaired, _, bound, _ = step(rows, [16, 5], (48, 32), 128, seed=9)
    b[1][0, 0, 3] = torch.inf
    packed, counts = packed_weights(80, 128), repaired.clone()
    apart = torch.ops.lorry.nf4_linear(x, packed)
    base = apart.clone()
    torch.ops.lorry.lora_linear_(apart, x, a, b, plan, repaired, 1.0, bound, True)
    slots = joined(a, b)
    together = torch.ops.lorry.nf4_lora_linear(x, packed, *slots, plan, counts, bound)
    assert torch.equal(together, apart)
    assert torch.equal(counts, repaired)
    assert rows < 24 or counts[0] > 0
    plan[0] = 0
    together = torch.ops.lorry.nf4_lora_linear(x, packed, *slots, plan, counts, bound)
    assert torch.equal(together, base)


@pytest.mark.parametrize("native", ["AMX-BF16"], indirect=True)
@pytest.mark.parametrize("rank", [8, 16, 24, 64])
def test_with_tiles_a_rows_lora_has_the_same_bits_in_every_batch(native, rank):
    _, x, a, b, *_ = step(300, [rank], (96, 48, 33), 160, seed=10)
    repaired = torch.zeros(1, dtype=torch.long)

    def deltas(rows: int) -> torch.Tensor:
        plan, y = make_plan(rows, 1), torch.zeros(rows, 177).bfloat16()
        write_plan(plan, torch.zeros(rows, dtype=torch.long), [rank])
        operands = (y, x[-rows:], a, b, plan, repaired, 1.0, BOUND, True)
        torch.ops.lorry.lora_linear_(*operands)
        return y

    whole = deltas(300)
    for rows in (1, 2, 4, 5, 7, 8, 9, 16, 17, 33, 96, 97, 255):
        assert torch.equal(deltas(rows), whole[-rows:])


@needs_native
def test_nf4_with_lora_passes_opcheck():
    _, x, a, b, plan, repaired, _, bound, _ = step(6, [8, 3], (16, 32), 64, seed=11)
    operands = (x, packed_weights(48, 64), *joined(a, b), plan, repaired, bound)
    torch.library.opcheck(torch.ops.lorry.nf4_lora_linear.default, operands)


@needs_native
def test_a_compiled_function_with_lora_in_it_equals_the_plain_one():
    def layer(x: torch.Tensor, weight: torch.Tensor, operands: Arguments) -> torch.Tensor:
        y = torch.nn.functional.linear(x, weight)
        torch.ops.lorry.lora_linear_(y, x, *operands)
        return y * torch.sigmoid(y)

    _, x, *operands = step(rows=12, ranks=[16, 5], widths=(24, 8), width=64, seed=5)
    weight = noise(32, 64, seed=6)
    expected = layer(x, weight, operands)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, operands), expected)
    operands[2][0] = 0  # no segments: the plan is read at each call, not at compile time
    assert not torch.equal(compiled(x, weight, operands), expected)
    torch.testing.assert_close(compiled(x, weight, operands), layer(x, weight, operands))
