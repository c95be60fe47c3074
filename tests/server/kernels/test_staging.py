"""Building an adapter beside the steps: the build, the answers, the step that takes it."""

import os
import re
import subprocess
import sys
from concurrent.futures import Future
from functools import partial
from queue import Queue
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from server.kernels import staging

REQUEST = SimpleNamespace(lora_int_id=5)


class Layer:
    def __init__(self):
        self.lora_a = self.lora_b = torch.ones(1)


class Manager:
    """vLLM's, as far as it is asked; `gate` holds the disk back."""

    def __init__(self):
        self.gate, self.read, self.error = Event(), [], None
        self.gate.set()
        self.removed = []
        self._adapter_manager = SimpleNamespace(
            _is_moe=True,
            lora_index_to_id=[9, None],
            list_adapters=lambda: {9: None},
            remove_adapter=self.removed.append,
        )

    def _load_adapter(self, request):
        assert self.gate.wait(10)
        self.read.append(request.lora_int_id)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(id=request.lora_int_id, loras={"q": Layer()})


class Worker(staging.AdapterStaging):
    def __init__(self):
        self.model_runner = SimpleNamespace(lora_manager=Manager())

    @property
    def manager(self):
        return self.model_runner.lora_manager


@pytest.fixture
def worker():
    return Worker()


RED = ("red@1#d.5", 5, "/store/d")


def stage(worker):
    return worker.stage_adapter(*RED)


def test_the_first_step_takes_the_built_adapter_and_reads_no_file(worker):
    stage(worker).result(10)
    assert worker.held_adapters() == {"host": [9, 5], "device": [9]}
    assert worker.manager._load_adapter(REQUEST).id == 5
    assert worker.manager.read == [5]
    assert worker.held_adapters()["host"] == [9]  # vLLM's own table has it from here on
    worker.manager._load_adapter(REQUEST)  # it was never staged, or dropped by vLLM's LRU
    assert worker.manager.read == [5, 5]


def test_a_failed_build_is_reported_and_leaves_nothing(worker):
    worker.manager.error = ValueError("rank 99")
    with pytest.raises(ValueError, match="rank 99"):
        stage(worker).result(10)
    worker.drop_adapter(5)
    worker.drop_adapter(5)
    assert worker.held_adapters()["host"] == [9]
    assert worker.manager.removed == [5, 5]


def answers_of(core, *arguments):
    """What vLLM's engine process sends for a utility, as it runs one."""
    method = partial(staging.stage_adapter, core)
    sent = []
    output = SimpleNamespace(result=None, failure_message=None)
    EngineCoreProc._invoke_utility_method(
        "stage_adapter",
        lambda: method(*EngineCoreProc._convert_msgspec_args(method, arguments)),
        output,
        sent.append,
    )
    assert output.failure_message is None
    return output, sent


@pytest.fixture
def core(worker):
    """An engine in a step: whatever waits for it stays in the queue."""
    executor = UniProcExecutor.__new__(UniProcExecutor)
    executor.driver_worker = worker
    core = EngineCoreProc.__new__(EngineCoreProc)
    core.__dict__ |= {
        "model_executor": executor,
        "collective_rpc": lambda method, args: executor.collective_rpc(method, args=args),
        "stage_adapter": partial(staging.stage_adapter, core),
        "shutdown_state": EngineShutdownState.RUNNING,
        "input_queue": Queue(),
        "output_queue": Queue(),
    }
    return core


def test_vllm_answers_once_the_adapter_is_built(worker, core):
    worker.manager.gate.clear()
    output, sent = answers_of(core, *RED)
    assert sent == []
    worker.manager.gate.set()
    worker._lorry_threads.shutdown(wait=True)
    assert sent == [output]
    assert output.failure_message is None


def arrive(core, *messages):
    """What vLLM's thread does with them; returns what is left for the engine's own."""

    def process_input_sockets(core, address):
        assert address == "ipc"
        for message in messages:
            core.input_queue.put_nowait(message)

    staging.answer_at_once(process_input_sockets)(core, "ipc")
    return list(core.input_queue.queue)


def asking(*arguments):
    return (EngineCoreRequestType.UTILITY, (0, 77, "stage_adapter", arguments))


def test_staging_is_answered_during_a_step(worker, core):
    assert arrive(core, asking(*RED)) == []
    client, outputs = core.output_queue.get(timeout=10)
    assert (client, outputs.utility_output.call_id) == (0, 77)
    assert outputs.utility_output.failure_message is None
    assert worker.manager._load_adapter(REQUEST).id == 5
    assert worker.manager.read == [5]


@pytest.mark.parametrize("arguments", [RED, ("too", "few")])
def test_a_staging_error_is_answered_and_the_thread_goes_on(worker, core, arguments):
    worker.manager.error = ValueError("rank 99")
    other = (EngineCoreRequestType.ABORT, ["request"])
    assert arrive(core, asking(*arguments), other) == [other]
    _, outputs = core.output_queue.get(timeout=10)
    assert re.search("rank 99|missing", outputs.utility_output.failure_message)


def test_all_other_messages_wait_for_the_step_unchanged(worker, core):
    messages = [
        (EngineCoreRequestType.ADD, ("request", 0)),
        (EngineCoreRequestType.UTILITY, (0, 1, "held_adapters", ())),
        (EngineCoreRequestType.WAKEUP, None),
    ]
    assert arrive(core, *messages) == messages
    assert worker.manager.read == []


def test_several_workers_stage_between_steps(core):
    core.model_executor = object()
    message = asking(*RED)
    assert arrive(core, message) == [message]


def test_several_workers_build_before_they_answer():
    asked = []
    core = SimpleNamespace(
        model_executor=object(),
        collective_rpc=lambda method, args: asked.append((method, args)),
    )
    _, sent = answers_of(core, *RED)
    assert asked == [("build_adapter", RED)]
    assert len(sent) == 1


def test_a_cancelled_build_ends_the_wait_for_it():
    told, staged = Future(), Future()
    staged.cancel()
    staging._copy_outcome(told, staged)
    assert told.cancelled()


@pytest.mark.slow
def test_building_uses_one_core_and_leaves_the_steps_their_threads():
    """In a process of its own: torch keeps what it first finds for good."""
    program = """
import threading, torch
from server.kernels.staging import _give_way
cores = []
def build():
    _give_way()
    torch.ones(1 << 20).add_(1)
    cores.append(torch.get_num_threads())
thread = threading.Thread(target=build)
thread.start()
thread.join()
torch.ones(1 << 20).add_(1)
print(*cores, torch.get_num_threads())
"""
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["1", "2"]
