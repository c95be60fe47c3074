"""Which calls wait, read off the calls themselves."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from standin_server import Stats

from server.call import Sequence
from server.telemetry.metrics import Metrics


def call_of(name: str | None, **given) -> SimpleNamespace:
    fields = {
        "engine_id": uuid.uuid4().hex,
        "version": name and SimpleNamespace(name=name),
        "adapter_label": name or "base",
        "account": f"{name}@1" if name else "base",
        "lease": None,
        "sequences": [],
    }
    return SimpleNamespace(**fields | given)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), "tiny")


def waiting(metrics: Metrics, name: str) -> float | None:
    labels = {"adapter": name, "version": "1" if name != "base" else ""}
    return metrics.registry.get_sample_value("lorry_requests_waiting", labels)


def sequence(scheduled: bool = False, finish_reason: str | None = None) -> Sequence:
    stats = Stats(scheduled_ts=1.0 if scheduled else 0.0)
    return Sequence("x", 5, stats, finish_reason=finish_reason)


def test_a_call_waits_until_it_has_its_adapter_and_again_until_the_engine_begins_it(metrics):
    call = call_of("red")
    metrics.begin(call, None)
    assert waiting(metrics, "red") == 1
    assert metrics.registry.get_sample_value("lorry_oldest_waiting_seconds") > 0
    call.lease = "lease"
    assert waiting(metrics, "red") == 0  # it is being made ready for the engine
    assert metrics.registry.get_sample_value("lorry_oldest_waiting_seconds") == 0
    call.sequences.append(sequence())
    assert waiting(metrics, "red") == 1
    call.sequences[0].stats.scheduled_ts = 1.0
    assert waiting(metrics, "red") == 0
    metrics.forget(call)
    assert waiting(metrics, "red") == 0


def test_a_call_of_the_base_waits_in_the_engines_queue_only(metrics):
    call = call_of(None)
    metrics.begin(call, None)
    assert waiting(metrics, "base") == 0
    call.sequences.append(sequence())
    assert waiting(metrics, "base") == 1


def test_what_the_engine_has_begun_without_a_token_yet_does_not_wait(metrics):
    calls = [call_of(name, lease="lease") for name in ("red", "green", "blue")]
    for call, scheduled in zip(calls, (True, False, False), strict=True):
        metrics.begin(call, None)
        call.sequences.append(sequence(scheduled))
    metrics.step_made(running=2)  # red, and green in a long prefill
    assert [waiting(metrics, name) for name in ("red", "green", "blue")] == [0, 0, 1]
    calls[0].sequences[0].finish_reason = "stop"
    metrics.step_made(running=1)
    assert [waiting(metrics, name) for name in ("red", "green", "blue")] == [0, 0, 1]
    metrics.step_made(running=0)
    assert [waiting(metrics, name) for name in ("red", "green", "blue")] == [0, 1, 1]
