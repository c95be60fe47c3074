"""Which adapters the engine holds is answered as vLLM does, without a copy of its cache."""

from typing import Any

import pytest
from vllm.lora.model_manager import AdapterLRUCache
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager

from server.kernels import residents

RESIDENT = (7, 3, 9)


class Adapters:
    def __init__(self) -> None:
        self._registered_adapters: AdapterLRUCache[str] = AdapterLRUCache(4, lambda key: None)
        for number in RESIDENT:
            self._registered_adapters[number] = f"adapter {number}"
        self.copies = 0

    def list_adapters(self) -> dict[int, str]:
        self.copies += 1
        return dict(self._registered_adapters.cache)


def test_the_answer_is_vllms_and_the_cache_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerLoRAManager, "list_adapters", WorkerLoRAManager.list_adapters)
    manager: Any = object.__new__(LRUCacheWorkerLoRAManager)
    manager._adapter_manager = adapters = Adapters()
    theirs = manager.list_adapters()
    assert adapters.copies == 1
    residents.install()
    assert manager.list_adapters() == theirs == set(RESIDENT)
    assert adapters.copies == 1
    adapters._registered_adapters.pop(3)
    assert manager.list_adapters() == {7, 9}
    assert list(adapters._registered_adapters.cache) == [7, 9]  # to ask is not to use
