"""Which adapters the engine holds is answered as vLLM does, without a copy of its cache."""

from types import SimpleNamespace
from typing import Any

from vllm.lora.model_manager import AdapterLRUCache, LoRAModelManager

from server.kernels.residents import _resident_ids


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
