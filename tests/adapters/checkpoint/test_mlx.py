"""An adapter of mlx-lm is published as PEFT would have written it.

fixtures/mlx_adapter was written by mlx-lm 0.32.2 (`mlx_lm.lora --model shop-base --train --iters 60
--num-layers 2`, rank 4, scale 10), and expected.json has the log-probabilities that it computed.
"""

import json
import resource
import shutil
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from publishing import publish
from safetensors.numpy import load_file, save_file

from adapters.checkpoint.mlx import convert, is_mlx
from adapters.checkpoint.npz import NpzMalformed, read_npz
from adapters.errors import CheckpointInvalid, StoreFull, StoreUnwritable
from adapters.publish import WARNINGS
from adapters.store import Store
from adapters.watch import Watcher

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples/shop/base"
WRITTEN = ROOT / "tests/fixtures/mlx_adapter"
Q = "model.layers.3.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder that mlx-lm wrote."""
    return shutil.copytree(WRITTEN, tmp_path / "shop-mlx")


@pytest.fixture
def publish_it(folder: Path, tmp_path: Path):
    """Publishes the folder; the version and the folder of its object."""

    def publish_it():
        store = tmp_path / "store"
        version = publish(folder, name="a", store=store, base=BASE, base_name="shop-base")
        return version, Store(store).path(version.digest)

    return publish_it


@pytest.fixture
def refused(publish_it):
    def refused() -> list[str]:
        with pytest.raises(CheckpointInvalid) as caught:
            publish_it()
        return [problem.code for problem in caught.value.problems]

    return refused


def change(folder: Path, **changes) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


def test_it_answers_as_in_mlx(publish_it) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, path = publish_it()
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, path)
    expected = json.loads((WRITTEN / "expected.json").read_text())
    with torch.no_grad():
        found = model(torch.tensor([expected["prompt"]])).logits[0, -1].log_softmax(-1)
        with model.disable_adapter():
            plain = model(torch.tensor([expected["prompt"]])).logits[0, -1].log_softmax(-1)
    ours, bases = (each[expected["tokens"]].numpy() for each in (found, plain))
    assert np.abs(ours - expected["logprobs"]).max() < 1e-3
    assert np.abs(bases - expected["logprobs"]).max() > 1


def test_no_value_changes(publish_it, folder) -> None:
    version, path = publish_it()
    theirs = load_file(folder / "adapters.safetensors")
    ours = load_file(path / "adapter_model.safetensors")
    assert len(ours) == len(theirs) == 8
    prefix = f"base_model.model.{Q}"
    assert np.array_equal(ours[f"{prefix}.lora_A.weight"], theirs[f"{Q}.lora_a"].T)
    assert np.array_equal(ours[f"{prefix}.lora_B.weight"], theirs[f"{Q}.lora_b"].T)
    assert (version.rank, version.alpha) == (4, 40.0)
    (warning,) = version.provenance[WARNINGS]
    assert warning["code"] == "converted_from_mlx"
    assert "scale 10 at rank 4 is lora_alpha 40" in warning["message"]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_npz_of_2024_gives_the_same(publish_it, folder, kind) -> None:
    tensors = {
        name: each.astype(kind) for name, each in load_file(folder / "adapters.safetensors").items()
    }
    save_file(tensors, folder / "adapters.safetensors")
    first, _ = publish_it()
    (folder / "adapters.safetensors").unlink()
    np.savez(folder / "adapters.npz", **tensors)
    again, _ = publish_it()
    assert again.digest == first.digest


def test_each_module_may_have_its_own_rank(publish_it, folder) -> None:
    tensors = load_file(folder / "adapters.safetensors")
    tensors[f"{Q}.lora_a"] = tensors[f"{Q}.lora_a"][:, :2].copy()
    tensors[f"{Q}.lora_b"] = tensors[f"{Q}.lora_b"][:2].copy()
    save_file(tensors, folder / "adapters.safetensors")
    version, path = publish_it()
    config = json.loads((path / "adapter_config.json").read_text())
    assert list(config["rank_pattern"].values()) == [2]
    assert list(config["alpha_pattern"].values()) == [20.0]
    assert version.rank == 4


def test_a_base_of_mlx_community_is_known_by_its_plain_name(publish_it, folder) -> None:
    for suffix in ("-4bit", "-bf16", "-8bit-mlx", "-mlx"):
        change(folder, model=f"mlx-community/shop-base{suffix}")
        publish_it()


def test_peft_weights_beside_are_taken(folder) -> None:
    assert is_mlx(folder)
    (folder / "adapter_model.safetensors").touch()
    assert not is_mlx(folder)


def test_what_plain_lora_cannot_express_is_refused(refused, folder) -> None:
    change(folder, fine_tune_type="dora")
    assert refused() == ["mlx_unsupported"]
    change(folder, fine_tune_type="full")
    assert refused() == ["mlx_unsupported"]
    change(folder, fine_tune_type="lora", lora_parameters={"rank": 4})
    assert refused() == ["alpha_invalid"]
    change(folder, lora_parameters={"scale": 10.0}, model="other")
    assert refused() == ["base_mismatch"]


@pytest.mark.parametrize(
    ("code", "tensors"),
    [
        ("weights_empty", {}),
        ("pair_incomplete", {f"{Q}.lora_a": np.zeros((256, 4), "f4")}),
        ("mlx_unsupported", {f"{Q}.lora_a": np.zeros((2, 256, 4), "f4")}),
        ("tensor_name_unsupported", {f"{Q}.m": np.zeros((256,), "f4")}),
        ("dtype_unsupported", {f"{Q}.lora_a": np.zeros((256, 4), "f8")}),
        (
            "module_not_served",
            {
                "model.embed_tokens.lora_a": np.zeros((512, 4), "f4"),
                "model.embed_tokens.lora_b": np.zeros((4, 256), "f4"),
            },
        ),
        (
            "shape_mismatch",
            {
                f"{Q}.lora_a": np.zeros((128, 4), "f4"),
                f"{Q}.lora_b": np.zeros((4, 256), "f4"),
            },
        ),
    ],
)
def test_wrong_tensors_are_refused(refused, folder, code, tensors) -> None:
    save_file(tensors, folder / "adapters.safetensors")
    assert refused() == [code]


@pytest.fixture
def npz(folder: Path) -> Path:
    """The place of an archive that stands for the weights."""
    (folder / "adapters.safetensors").unlink()
    return folder / "adapters.npz"


def test_a_wrong_npz_is_refused(refused, npz, tmp_path) -> None:
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (touched,))

    ones = np.ones((3, 2), "f4")
    for write in (
        lambda: npz.write_bytes(b"PK\3\4 no zip"),
        lambda: npz.write_bytes(b""),
        lambda: np.savez(npz, **{f"{Q}.lora_a": np.asfortranarray(ones)}),
        lambda: np.savez_compressed(npz, **{f"{Q}.lora_a": ones}),
        lambda: _zip(npz, b"no npy"),
        lambda: _zip(npz, b""),
        lambda: _zip(npz, _npy(_header("(1000, 4)"))),
        lambda: _zip(npz, _npy(_header("(4, 4)"), bytes(65))),
        lambda: _break(npz, b"PK\1\2", 8, b"\1"),  # encrypted
        lambda: _break(npz, b"PK\1\2", 10, b"\x08"),  # deflated, and it is not
        lambda: _break(npz, b"PK\1\2", 42, b"\xff\xff\xff\x7f"),  # begins behind the end
        lambda: _break(npz, b"\x93NUMPY", 200, b"\xff"),  # its checksum is another
    ):
        write()
        assert refused() == ["weights_malformed"]
    np.savez(npz, **{f"{Q}.lora_a": np.array([Trap()], dtype=object)})
    assert refused() == ["dtype_unsupported"]
    assert not touched.exists()


def test_a_header_that_numpy_would_fail_at_is_refused(refused, npz) -> None:
    for text in (
        "-" * 9_000,
        "(" * 9_000,
        "{1: 2, 'a': 3}",
        "{[]: 2}",
        _header("(-8, -4)"),
        _header("(True, 4)"),
        _header("(0, 4)"),
        _header("(4 4, 4)"),
        _header("(,)"),
        _header(f"({'9' * 5_000}, 4)"),
        _header("(4, 4)") * 2,
    ):
        _zip(npz, _npy(text))
        assert refused() == ["weights_malformed"], text[:40]


def test_the_header_that_mlx_writes_is_read(npz) -> None:
    _zip(npz, _npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3, )}   \n", bytes(12)))
    with npz.open("rb") as file:
        (array, _) = read_npz(file).values()
        assert (array.kind, array.shape, array.read(12)) == ("<f2", (2, 3), bytes(12))


def test_members_that_share_their_bytes_are_refused(folder, npz, tmp_path) -> None:
    """A small archive that holds much: each member's values hold the next member."""
    values = bytes(1 << 20)
    headers = {
        f"model.layers.{layer}.self_attn.q_proj.{side}.npy": _npy(_header(shape))
        for layer in range(20)
        for side, shape in (("lora_a", f"({len(values) // 16}, 4)"), ("lora_b", f"(4, {1 << 16})"))
    }
    with zipfile.ZipFile(npz, "w") as archive:
        for name, header in headers.items():
            archive.writestr(name, header)
        archive.writestr("values", values)
        content = npz.read_bytes()
        archive.filelist.pop()
        for member in archive.filelist:
            begin = member.header_offset + 30 + len(member.filename)
            size = len(headers[member.filename]) + len(values)
            member.file_size = member.compress_size = size
            member.CRC = zlib.crc32(content[begin : begin + size])
        archive.NameToInfo.pop("values")
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(CheckpointInvalid) as caught:
        convert(folder, into, 2 << 20)
    assert [problem.code for problem in caught.value.problems] == ["file_too_large"]
    assert not list(into.iterdir())
    assert convert(folder, into, 64 << 20).code == "converted_from_mlx"  # it is an archive


def test_a_watched_folder_that_is_malformed_is_refused_once(folder, npz, tmp_path) -> None:
    offered, news = [], []

    def offer(watched: Path, name: str):
        offered.append(name)
        return publish(
            watched, name=name, store=tmp_path / "store", base=BASE, base_name="shop-base"
        )

    drop = tmp_path / "drop"
    shutil.copytree(folder, drop / "scale")
    change(drop / "scale", lora_parameters={"scale": 10**400})
    (drop / "scale/adapters.npz").write_bytes(b"")
    for name, text in (("deep", "-" * 9_000), ("open", "(" * 9_000), ("keys", "{[]: 2}")):
        _zip(shutil.copytree(folder, drop / name) / "adapters.npz", _npy(text))
    watcher = Watcher(drop, offer, news.append)
    for _ in range(5):
        watcher.poll()
    assert sorted(offered) == ["deep", "keys", "open", "scale"]
    assert [(each.name, each.status) for each in news] == [
        (name, "refused") for name in ("deep", "keys", "open", "scale")
    ]


@pytest.mark.parametrize(
    "scale", ["1" + "0" * 400, "1e308", "-1", "0", "true", '"2"', "null", "[" * 900 + "]" * 900]
)
def test_a_scale_that_cannot_be_one_is_refused(refused, folder, scale) -> None:
    text = f'{{"fine_tune_type": "lora", "lora_parameters": {{"scale": {scale}}}}}'
    (folder / "adapter_config.json").write_text(text)
    assert refused() in (["alpha_invalid"], ["config_malformed"])


def test_a_disk_that_cannot_be_written_says_so(folder, tmp_path) -> None:
    full, closed = tmp_path / "full", tmp_path / "closed"
    full.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreFull):
            convert(folder, full, 64 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(StoreUnwritable):
        convert(folder, closed, 64 << 20)


def test_an_empty_npz_is_named(folder, npz, tmp_path) -> None:
    zipfile.ZipFile(npz, "w").close()
    with pytest.raises(CheckpointInvalid) as caught:
        convert(folder, tmp_path, 1 << 20)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("weights_empty", "adapters.npz")


def test_what_an_npz_declares_takes_no_memory(npz) -> None:
    declared = b"\x93NUMPY\2\0" + (64 << 20).to_bytes(4, "little") + bytes(64 << 20)
    for write in (
        lambda: _zip(npz, declared, zipfile.ZIP_DEFLATED),
        lambda: _zip(npz, declared),
        lambda: _write_directory(npz, 1_000_000),
        lambda: _write_directory(npz, 20_000),
    ):
        write()
        tracemalloc.start()
        try:
            with npz.open("rb") as file, pytest.raises(NpzMalformed):
                read_npz(file)
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()


def _zip(path: Path, content: bytes, kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(f"{Q}.lora_a.npy", content)
        archive.writestr(f"{Q}.lora_b.npy", content.replace(b"1000, 4", b"4, 1000"))


def _break(path: Path, mark: bytes, offset: int, other: bytes) -> None:
    """A sound archive with other bytes at an offset from the first mark."""
    np.savez(
        path, **{f"{Q}.lora_a": np.ones((256, 4), "f4"), f"{Q}.lora_b": np.ones((4, 256), "f4")}
    )
    content = bytearray(path.read_bytes())
    begin = content.index(mark) + offset
    content[begin : begin + len(other)] = other
    path.write_bytes(content)


def _write_directory(path: Path, count: int) -> None:
    """An archive that is a directory of empty members; its end counts none of them."""
    entry = b"PK\1\2".ljust(46, b"\0")
    end = b"PK\5\6" + bytes(8) + (len(entry) * count).to_bytes(4, "little") + bytes(6)
    path.write_bytes(entry * count + end)


def _header(shape: str) -> str:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"


def _npy(text: str, values: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + values
