"""Slots report the repaired values of broken adapters in each step."""

from types import SimpleNamespace

import numpy as np
import torch

from server.kernels.lora import PlannedPunicaWrapper
from server.kernels.slots import _describe, _repaired_by_request

CONFIG = SimpleNamespace(max_loras=3, max_lora_rank=16, lora_dtype=torch.float32)


def wrapper() -> PlannedPunicaWrapper:
    return PlannedPunicaWrapper(16, 4, "cpu", lora_config=CONFIG)


def runner(wrapper: PlannedPunicaWrapper, batch: dict[str, int]) -> SimpleNamespace:
    """A stand-in for vLLM's model runner: slots hold 7, nothing and 9."""
    manager = SimpleNamespace(
        lora_index_to_id=[7, None, 9], punica_wrapper_mapping={"": wrapper, "vision": wrapper}
    )
    mapping = np.zeros(8, dtype=np.int64)
    mapping[: len(batch)] = list(batch.values())
    return SimpleNamespace(
        lora_config=CONFIG,
        lora_manager=SimpleNamespace(_adapter_manager=manager),
        input_batch=SimpleNamespace(
            num_reqs=len(batch), req_ids=list(batch), request_lora_mapping=mapping
        ),
    )


def test_only_requests_of_a_slot_with_repaired_values_are_reported():
    ours = wrapper()
    step = runner(ours, {"a": 9, "b": 0, "c": 7, "d": 9})
    assert _repaired_by_request(step, None) == {}
    ours.repaired[2] = 5
    assert _repaired_by_request(step, None) == {"a": 5, "d": 5}


def test_repaired_values_of_a_departed_adapter_are_not_reported():
    ours = wrapper()
    ours.repaired[1] = 3
    assert _repaired_by_request(runner(ours, {"a": 7, "b": 0}), None) == {}


def test_an_engine_without_adapters_reports_none():
    assert _repaired_by_request(SimpleNamespace(lora_config=None), None) == {}


def test_filling_a_slot_resets_its_count_and_sets_its_rank():
    ours = wrapper()
    ours.repaired[2] = 5
    weights = {
        "qkv": SimpleNamespace(lora_a=[torch.zeros(4, 8), None, torch.zeros(9, 8)]),
        "down": SimpleNamespace(lora_a=torch.zeros(3, 8)),
        "gate": None,
    }
    manager = SimpleNamespace(
        lora_index_to_id=[None, None, 9],
        _registered_adapters={9: "adapter"},
        modules=dict.fromkeys(weights),
        _get_lora_layer_weights=lambda adapter, name: weights[name],
        punica_wrapper_mapping={"": ours},
    )
    _describe(manager, 9)
    assert (ours.repaired.tolist(), ours._ranks[2]) == ([0, 0, 0], 9)
    assert ours._has_logits[2] is False
