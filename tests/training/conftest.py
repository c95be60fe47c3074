"""A tiny base that the builder made in two steps: the right shape, no knowledge."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.tinybase.build import build_base
from training.tinybase.pretrain import Schedule

SHORT = Schedule(seed=0, steps=2, batch_size=4)


@pytest.fixture(scope="package", autouse=True)
def single_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine, and models this small gain nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def short_schedule() -> Schedule:
    return SHORT


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "base"
    build_base(folder, SHORT, lambda line: None, judged_examples=2)
    return folder


@pytest.fixture
def chat_set(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    turns = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]
    path.write_text(f"{json.dumps({'messages': turns})}\n" * 8)
    return path
