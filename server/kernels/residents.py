"""Which adapters the engine holds, answered without copying its cache.

vLLM asks that for each adapter of each step, and copies the cache twice for an answer, item by item
in Python (`LRUCacheWorkerLoRAManager.add_adapter`, `_MappingOrderCacheView`): a millisecond for a
step of 24 adapters where 128 are resident (docs/log/kernels.md).
"""

from typing import Any

from vllm.lora.worker_manager import WorkerLoRAManager


def install() -> None:
    """Once; the answer is the same, ids without an order."""
    WorkerLoRAManager.list_adapters = _resident_ids


def _resident_ids(manager: Any) -> set[int]:
    return set(manager._adapter_manager._registered_adapters)
