import json
import math
from pathlib import Path

import numpy as np
import pytest

from adapters.checkpoint import tensors
from adapters.checkpoint.tensors import TensorsMalformed, measure, read_tensors


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", ["bf16", "f16", "f32"])
def test_norm_and_largest_value_are_those_of_the_values(kit, tmp_path, monkeypatch, pack) -> None:
    monkeypatch.setattr(tensors, "CHUNK_BYTES", 64)
    values = np.random.default_rng(1).integers(-8, 8, (13, 7)).astype(np.float32) / 4
    raws = {"first": kit.f32(np.ones((3, 3))), "second": getattr(kit, pack)(values)}
    path = write(tmp_path / "x.safetensors", kit.encode(raws))
    found = read_tensors(path)
    assert found["second"].shape == (13, 7)
    with path.open("rb") as file:
        size = measure(file, found["second"])
    assert size.largest == np.abs(values).max()
    assert size.norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pack", ["bf16", "f16", "f32"])
def test_one_value_that_is_not_finite_is_detected(kit, tmp_path, pack, bad) -> None:
    values = np.zeros((40, 5))
    values[-1, -1] = bad
    path = write(tmp_path / "x.safetensors", kit.encode({"w": getattr(kit, pack)(values)}))
    with path.open("rb") as file:
        assert not math.isfinite(measure(file, read_tensors(path)["w"]).largest)


def test_large_finite_values_are_not_infinite(kit, tmp_path) -> None:
    path = write(tmp_path / "x.safetensors", kit.encode({"w": kit.f32(np.full((9, 9), 3e38))}))
    with path.open("rb") as file:
        size = measure(file, read_tensors(path)["w"])
    assert size.largest == pytest.approx(3e38)
    assert size.norm == math.inf


def test_a_file_that_shrinks_while_it_is_read_is_an_error(kit, tmp_path) -> None:
    path = write(tmp_path / "x.safetensors", kit.encode({"w": kit.f32(np.ones((9, 9)))}))
    found = read_tensors(path)["w"]
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as file, pytest.raises(TensorsMalformed, match="ends in the middle"):
        measure(file, found)


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(begin: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "short": b"\x01\x00",
        "garbage": b"\xff" * 400,
        "a pickle": b"\x80\x04K\x01." + b"\x00" * 100,
        "header cut off": (1000).to_bytes(8, "little") + b"{}",
        "header too large": (1 << 40).to_bytes(8, "little") + b"{}",
        "header not JSON": framed(b"{nonsense"),
        "header not an object": framed(b"[]"),
        "header nested deeply": framed(b"[" * 100_000),
        "entry without type": framed(json.dumps({"w": {"shape": [1]}}).encode(), b"0000"),
        "unknown type": framed(
            json.dumps({"w": entry(0, 4, [1]) | {"dtype": "?"}}).encode(), b"0" * 4
        ),
        "negative offset": framed(json.dumps({"w": entry(-4, 0, [1])}).encode(), b"0000"),
        "data cut off": framed(json.dumps({"w": entry(0, 8, [2])}).encode(), b"0000"),
        "data left over": framed(json.dumps({"w": entry(0, 4, [1])}).encode(), b"00000000"),
        "size unlike shape": framed(json.dumps({"w": entry(0, 8, [1])}).encode(), b"0" * 8),
        "overlap": framed(
            json.dumps({"v": entry(0, 4, [1]), "w": entry(0, 4, [1])}).encode(), b"0000"
        ),
        "gap": framed(
            json.dumps({"v": entry(0, 4, [1]), "w": entry(8, 12, [1])}).encode(), b"0" * 12
        ),
        "shape overflow": framed(
            json.dumps({"w": entry(0, 4, [1 << 62, 1 << 62])}).encode(), b"0" * 4
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_malformed_file_is_refused(tmp_path, content) -> None:
    with pytest.raises(TensorsMalformed):
        read_tensors(write(tmp_path / "x.safetensors", content[1]))


def test_a_repeated_name_is_refused_as_readers_may_differ_on_it(tmp_path) -> None:
    first, second = json.dumps(entry(0, 8, [2])), json.dumps(entry(0, 4, [1]))
    text = f'{{"w":{first},"w":{second}}}'
    with pytest.raises(TensorsMalformed, match="names 'w' twice"):
        read_tensors(write(tmp_path / "x.safetensors", framed(text.encode(), b"0000")))
