"""Calls in a process's loop do not map and unmap memory for their frames."""

import resource
import sys
from types import SimpleNamespace

import pytest

from server.kernels import frames
from server.kernels.frames import with_room

CALLS = 500
DEEPEST = 250  # of a dozen words each: more than a chunk


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
    assert bare >= CALLS, "this Python keeps its chunks: server/kernels/frames.py may go"
    assert max(with_room(_at)(depth) for depth in range(DEEPEST)) < CALLS / 10


def test_what_it_gives_and_raises_is_passed_on() -> None:
    assert with_room(divmod)(7, 4) == (1, 3)
    with pytest.raises(ZeroDivisionError):
        with_room(divmod)(7, 0)


def test_it_is_put_around_each_loop_once_where_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def loop(self) -> str:
            return "ran"

    monkeypatch.setattr(frames, "_LOOPS", (("here", "Process", "loop"), ("absent", "P", "loop")))
    monkeypatch.setitem(sys.modules, "here", SimpleNamespace(Process=Process))  # type: ignore[arg-type]
    frames.install()
    once = Process.loop
    frames.install()
    assert Process.loop is once
    assert once.__code__.co_stacksize > 16 * 1024 / 8
    assert Process().loop() == "ran"
