"""The adapters in the engine's slots and the displaced ones, as the worker reports them."""

from __future__ import annotations

from types import SimpleNamespace

from server.kernels.staging import AdapterStaging


class Worker(AdapterStaging):
    """A stand-in for vLLM's worker: two slots, filled as its LRU manager does."""

    def __init__(self):
        self.slots = [None, None]
        adapters = SimpleNamespace(lora_index_to_id=self.slots)
        manager = SimpleNamespace(_adapter_manager=adapters, add_adapter=self.fill)
        self.model_runner = SimpleNamespace(lora_manager=manager)
        self.turn = 0

    def fill(self, request):
        if request.lora_int_id not in self.slots:
            self.slots[self.turn % 2] = request.lora_int_id
            self.turn += 1
        return True

    def step(self, *numbers):
        for number in numbers:
            request = SimpleNamespace(lora_int_id=number, lora_name=f"a{number}@1#x.{number}")
            assert self.model_runner.lora_manager.add_adapter(request)


def test_slots_and_displacements_are_reported_once_by_name():
    worker = Worker()
    assert worker.slot_changes() == {"device": [], "displaced": []}
    worker.step(1, 2)
    worker.step(1, 2)
    assert worker.slot_changes() == {"device": ["a1@1#x.1", "a2@1#x.2"], "displaced": []}
    worker.step(3)
    worker.step(1)
    changes = worker.slot_changes()
    assert changes["displaced"] == ["a1@1#x.1", "a2@1#x.2"]
    assert sorted(changes["device"]) == ["a1@1#x.1", "a3@1#x.3"]
    assert worker.slot_changes()["displaced"] == []


def test_an_unloaded_adapter_is_not_displaced():
    worker = Worker()
    worker.slot_changes()
    worker.step(1, 2)
    worker.slots[0] = None
    assert worker.slot_changes() == {"device": ["a2@1#x.2"], "displaced": []}
    worker.step(3)
    assert worker.slot_changes()["displaced"] == []


def test_a_recording_error_does_not_fail_a_step():
    worker = Worker()
    worker.slot_changes()
    worker.model_runner.lora_manager.add_adapter(SimpleNamespace(lora_int_id=7))  # has no name
    assert worker.slots[0] == 7
