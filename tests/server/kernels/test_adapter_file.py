"""An adapter's file becomes tensors as the library reads them, in memory of their own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.lora.peft_helper import PEFTHelper

from server.kernels.staging import OwnedLoRAModel, load_tensors

CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    weights = {f"{name}A.weight": noise(4, 8).bfloat16(), f"{name}B.weight": noise(6, 4).bfloat16()}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    return tmp_path


def file_of(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def build(folder: Path, modules: tuple[str, ...] = ("q_proj",)) -> OwnedLoRAModel:
    return OwnedLoRAModel.from_local_checkpoint(
        str(folder),
        set(modules),
        PEFTHelper.from_dict(CONFIG),
        lora_model_id=7,
        device="cpu",
        dtype=torch.bfloat16,
        model_vocab_size=100,
        weights_mapper=None,
        skip_prefixes=None,
        moe_ep_spec=None,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_equal_those_of_the_library(tmp_path, dtype):
    file = tmp_path / "some.safetensors"
    saved = {"one": noise(3, 5).to(dtype), "two": noise(2, 1, 4).to(dtype), "empty": noise(0, 4)}
    save_file(saved, file, {"format": "pt"})
    wanted = load_file(file)
    found = load_tensors(file)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_tensor_at_an_unaligned_offset_is_read(tmp_path):
    header = {
        "half": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        "full": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = torch.tensor([1.5]).half().numpy().tobytes() + noise(2).numpy().tobytes()
    file = tmp_path / "odd.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + values)
    found = load_tensors(file)
    assert found["half"].item() == 1.5
    assert torch.equal(found["full"], noise(2))


def test_tensors_stay_when_the_file_is_overwritten_and_share_no_memory_with_it(folder):
    before = load_file(file_of(folder))
    kept = {name: tensor.clone() for name, tensor in before.items()}
    found = load_tensors(file_of(folder))
    with file_of(folder).open("r+b") as file:
        file.seek(-64, 2)
        file.write(b"\xff" * 64)
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    next(iter(found.values())).zero_()  # as merging scales B in place
    assert file_of(folder).read_bytes()[-64:] == b"\xff" * 64


@pytest.mark.parametrize("length", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused(folder, length):
    file = file_of(folder)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_tensors(file)


def test_a_header_length_beyond_the_file_is_refused(tmp_path):
    file = tmp_path / "long.safetensors"
    file.write_bytes(b"\xff" * 8 + b"{}" + b" " * 6)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_tensors(file)


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b"3",
        b"[" * 100_000,
        b'{"t": 3}',
        b'{"t": {"dtype": "F32", "shape": [1]}}',
        b'{"t": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}',
        b'{"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        b'{"t": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"t": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header):
    file = tmp_path / "bad.safetensors"
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a complete safetensors file"):
        load_tensors(file)


def test_an_adapter_is_built_without_another_copy(folder):
    model = build(folder)
    (weights,) = model.loras.values()
    assert (model.id, weights.rank, weights.scaling) == (7, 4, 2.0)
    tensors = load_file(file_of(folder))
    assert torch.equal(weights.lora_a, next(t for n, t in tensors.items() if "lora_A" in n))
    a, b = (tensor.untyped_storage().data_ptr() for tensor in (weights.lora_a, weights.lora_b))
    assert a == b


def test_modules_that_take_no_adapter_are_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj takes no adapter"):
        build(folder, modules=("k_proj",))


def test_a_folder_without_weights_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        build(tmp_path)
