"""Compiled models are found again, frames have room, resident adapters are listed."""

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.model_manager import AdapterLRUCache, LoRAModelManager

from server.kernels import engine_patches
from server.kernels.engine_patches import _resident_ids, with_room

CALLS = 500
DEEPEST = 250  # of a dozen words each: more than a chunk

SAVE = """
import sys, torch
def twice(x): return x * 2 + 1
compiled = torch.compile(twice, fullgraph=True).aot_compile(((torch.ones(3),), {}))
compiled.save_compiled_function(sys.argv[1])
"""
LOAD = """
import sys, torch
from server.kernels import engine_patches
engine_patches.install()
engine_patches.install()
with open(sys.argv[1], "rb") as file:
    loaded = torch.compiler.load_compiled_function(file)
loaded._artifacts.compiled_fn.finalize_loading(None)
print(loaded(torch.full((3,), 4.0)).tolist())
"""


@pytest.mark.slow
def test_a_saved_function_can_be_finished_as_vllm_does(tmp_path: Path) -> None:
    saved = str(tmp_path / "compiled")
    for program in (SAVE, LOAD):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, saved],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split("\n")[-2] == "[9.0, 9.0, 9.0]"


def _leaf() -> None:
    pass


_leaf.__code__ = _leaf.__code__.replace(co_stacksize=100)


def _page_faults_of_calls() -> int:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(CALLS):
        _leaf()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def _at(depth: int) -> int:
    return _at(depth - 1) if depth else _page_faults_of_calls()


def test_no_depth_of_calls_takes_a_page_fault_for_each_one_more() -> None:
    bare = max(_at(depth) for depth in range(DEEPEST))
    assert bare >= CALLS, "this Python keeps its chunks: make_room_for_frames may go"
    assert max(with_room(_at)(depth) for depth in range(DEEPEST)) < CALLS / 10


def test_what_it_gives_and_raises_is_passed_on() -> None:
    assert with_room(divmod)(7, 4) == (1, 3)
    with pytest.raises(ZeroDivisionError):
        with_room(divmod)(7, 0)


def test_it_is_put_around_each_loop_once_where_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def loop(self) -> str:
            return "ran"

    monkeypatch.setattr(
        engine_patches, "_LOOPS", (("here", "Process", "loop"), ("absent", "P", "loop"))
    )
    monkeypatch.setitem(sys.modules, "here", SimpleNamespace(Process=Process))  # type: ignore[arg-type]
    engine_patches.make_room_for_frames()
    once = Process.loop
    engine_patches.make_room_for_frames()
    assert Process.loop is once
    assert once.__code__.co_stacksize > 16 * 1024 / 8
    assert Process().loop() == "ran"


def test_the_answer_is_vllms_and_to_ask_is_not_to_use() -> None:
    cache: AdapterLRUCache[str] = AdapterLRUCache(4, lambda key: None)
    for number in (7, 3, 9):
        cache[number] = f"adapter {number}"
    cache.touch(7)
    adapters: Any = SimpleNamespace(_registered_adapters=cache)
    ours = _resident_ids(SimpleNamespace(_adapter_manager=adapters))
    assert list(cache.cache) == [3, 9, 7]
    assert type(ours) is set  # it is sent to other processes
    assert ours == set(LoRAModelManager.list_adapters(adapters)) == {3, 7, 9}
    cache.pop(3)
    assert ours == {3, 7, 9}
    assert _resident_ids(SimpleNamespace(_adapter_manager=adapters)) == {7, 9}
