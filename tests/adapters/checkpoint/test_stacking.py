"""The stacked adapter of a sum changes each module's weights by the sum of what its parts do."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from adapter_files import decode

from adapters.checkpoint import read_checkpoint
from adapters.checkpoint.base import Base
from adapters.checkpoint.stacking import Weighted, base_of, stack
from adapters.errors import CheckpointInvalid

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def values(raw) -> np.ndarray:
    if raw.dtype == "BF16":
        bits = np.frombuffer(raw.data, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(raw.shape).astype(np.float64)
    kind = {"F16": "<f2", "F32": "<f4"}[raw.dtype]
    return np.frombuffer(raw.data, kind).reshape(raw.shape).astype(np.float64)


def changes(folder: Path) -> dict[str, np.ndarray]:
    """What an adapter adds to the weights of each module, by its config and PEFT's rules."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = decode((folder / WEIGHTS).read_bytes())
    found = {}
    for name, raw in tensors.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        last = module.rpartition(".")[2]

        def of(pattern: str, default: float, module: str = module, last: str = last) -> float:
            mine = {key.replace("\\", ""): each for key, each in config[pattern].items()}
            return mine.get(module, mine.get(last, default))

        rank, alpha = of("rank_pattern", config["r"]), of("alpha_pattern", config["lora_alpha"])
        assert raw.shape[0] == rank
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        found[module] = scale * values(tensors[name.replace("lora_A", "lora_B")]) @ values(raw)
    return found


def drafts(kit) -> dict[str, tuple[object, float]]:
    """Adapters of every kind that is published, and a weight for each."""
    rooted = kit.build(seed=2, rank=8, targets=("q_proj", "up_proj"), pack=kit.f16)
    rooted.config["use_rslora"] = True
    patterned = kit.build(seed=3, rank=4, ranks={"v_proj": 2}, layers=(1,), pack=kit.f32)
    patterned.config |= {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    return {
        "plain": (kit.build(seed=1), 0.7),
        "rooted": (rooted, -1.5),
        "patterned": (patterned, 0.123456789),
    }


def written(kit, folder: Path, names=("plain", "rooted", "patterned")) -> list[Weighted]:
    made = drafts(kit)
    return [Weighted(made[name][0].write(folder / name), made[name][1]) for name in names]


def test_the_changes_add_up_for_any_ranks_scales_types_and_targets(kit, base, tmp_path):
    parts = written(kit, tmp_path)
    modules = stack(parts, into(tmp_path), "tiny-base")
    expected: dict[str, np.ndarray] = {}
    for part in parts:
        for module, change in changes(part.folder).items():
            expected[module] = expected.get(module, 0.0) + part.weight * change
    found = changes(tmp_path / "sum")
    assert found.keys() == expected.keys() == modules.keys()
    for module, change in found.items():
        assert change.shape == modules[module]
        np.testing.assert_allclose(change, expected[module], rtol=1e-5, atol=1e-7)
    checkpoint = read_checkpoint(tmp_path / "sum", base)
    assert (checkpoint.rank, checkpoint.base_name) == (4 + 8 + 4, "tiny-base")
    # Parts alone show what of the base is needed.
    assert read_checkpoint(tmp_path / "sum", base_of(modules, "tiny-base", None)) == checkpoint
    assert isinstance(base, Base)


def test_the_values_of_one_part_are_kept_and_of_a_common_type(kit, base, tmp_path):
    draft = kit.build()
    stack([Weighted(draft.write(tmp_path / "a"), 0.5)], into(tmp_path), None)
    found = decode((tmp_path / "sum" / WEIGHTS).read_bytes())
    assert found[draft.a] == draft.tensors[draft.a]  # bfloat16, byte by byte
    scale = 0.5 * draft.config["lora_alpha"] / draft.config["r"]
    assert found[draft.b].dtype == "F32"
    np.testing.assert_array_equal(values(found[draft.b]), scale * values(draft.tensors[draft.b]))
    read_checkpoint(tmp_path / "sum", base)


def test_the_same_parts_make_the_same_bytes(kit, tmp_path):
    parts = written(kit, tmp_path)
    for name in ("one", "two"):
        stack(parts, into(tmp_path, name), "tiny-base")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_adapters_of_other_shapes_have_no_sum(kit, tmp_path):
    wide = kit.build(seed=5)
    name = wide.a
    wide.tensors[name] = kit.bf16(np.ones((4, 99)))
    parts = [*written(kit, tmp_path, ["plain"]), Weighted(wide.write(tmp_path / "wide"), 1.0)]
    with pytest.raises(CheckpointInvalid) as refused:
        stack(parts, into(tmp_path), None)
    assert refused.value.problems[0].code == "shape_mismatch"


@pytest.mark.parametrize("break_it", [lambda b: b[:-9], lambda b: b[:20], lambda b: b""])
def test_damaged_parts_are_refused(kit, tmp_path, break_it):
    part = written(kit, tmp_path, ["plain"])[0]
    file = part.folder / WEIGHTS
    file.write_bytes(break_it(file.read_bytes()))
    with pytest.raises(CheckpointInvalid):
        stack([part], into(tmp_path), None)
    (part.folder / CONFIG).write_text("{}")
    with pytest.raises(CheckpointInvalid):
        stack([part], into(tmp_path, "again"), None)
    file.unlink()
    with pytest.raises(CheckpointInvalid):
        stack([part], into(tmp_path, "once more"), None)


def into(folder: Path, name: str = "sum") -> Path:
    (folder / name).mkdir()
    return folder / name
