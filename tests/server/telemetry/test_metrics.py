"""The series of the contract, their number, and which calls count as waiting."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from standin_server import House, Stats, publish

from server.call import Sequence, current_call
from server.residency.catalog_sync import Removals
from server.telemetry.ledger import OTHER
from server.telemetry.metrics import Metrics

RED = {"adapter": "red", "version": "1"}


@pytest.fixture
def busy(house) -> House:
    """A house whose engine answers with four tokens and reports all its phases."""

    async def answer(scope, receive, send):
        call = current_call.get()
        at = call.started
        stats = Stats(4, at + 0.01, at + 0.03, at + 0.06, at + 0.2)
        call.sequences.append(Sequence("x", 5, stats, finish_reason="length", cached_tokens=2))
        for _ in range(3):
            house.metrics.token_made(call, 0.02)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    house.inner.answer = answer
    return house


async def test_each_engine_measurement_has_its_series(busy):
    house = busy
    await house.chat("red")

    for name, seconds in (("queue", 0.02), ("prefill", 0.03), ("decode", 0.14)):
        assert house.count(f"lorry_{name}_time_seconds_sum", **RED) == pytest.approx(seconds)
    assert house.count("lorry_inter_token_latency_seconds_count", **RED) == 3
    assert house.count("lorry_finished_sequences_total", **RED, reason="length") == 1
    assert house.count("lorry_cached_prompt_tokens_total", **RED) == 2
    assert house.count("lorry_adapter_load_seconds_count", **RED) == 1


async def test_every_histogram_of_a_call_has_exemplars_in_openmetrics(busy):
    house = busy
    await house.chat("red")
    families = {
        family.name: family
        for family in text_string_to_metric_families(
            generate_latest(house.metrics.registry).decode()
        )
    }
    trace = house.log[0]["trace_id"]
    for name in (
        "request_duration_seconds",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "queue_time_seconds",
        "prefill_time_seconds",
        "decode_time_seconds",
        "requests",
    ):
        samples = families[f"lorry_{name}"].samples
        assert {"trace_id": trace} in [each.exemplar.labels for each in samples if each.exemplar]
    for name in ("adapter_eviction_idle_seconds", "oldest_waiting_seconds", "engine_up"):
        assert f"lorry_{name}" in families
    assert families["lorry_adapter_places"].samples[0].labels == {"tier": "device"}


async def test_series_are_limited_and_no_count_is_lost(house):
    house.metrics._ledger._versions.limit = 5
    for number in range(30):
        publish(house.catalog, f"a{number}")
        assert (await house.chat(f"a{number}")).status_code == 200
    text = generate_latest(house.metrics.registry).decode()
    made = [line for line in text.splitlines() if line.startswith("lorry_requests_total{")]
    assert len(made) == 6
    assert sum(float(line.split()[1]) for line in made) == 30
    other = {"adapter": "_other", "version": ""}
    assert house.count("lorry_time_to_first_token_seconds_count", **other) == 25
    assert house.count("lorry_adapter_loads_total", **other, result="ok") == 25


async def test_a_call_whose_version_is_removed_meanwhile_counts_into_other(house):
    async def answer(scope, receive, send):
        house.metrics.removed("red@1")
        assert house.count("lorry_requests_in_flight", adapter="_other", version="") == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    house.inner.answer = answer
    await house.chat("red")
    ok = {"endpoint": "/v1/chat/completions", "outcome": "ok"}
    assert house.count("lorry_requests_total", adapter="_other", version="", **ok) == 1
    assert house.metrics.versions() == []


async def test_a_removed_version_loses_its_series_and_its_place(house):
    for model in ("red", "green"):
        await house.chat(model)
    assert house.metrics.versions() == ["red@1", "green@1"]
    version = house.catalog.list_versions("red")[0]
    house.catalog.drop_alias("red", "stable", actor="test")
    house.catalog.remove("red", 1, actor="test")
    assert len(house.engine.loaded) == 2
    await Removals(house.catalog, house.residency, house.metrics).look()
    assert house.metrics.versions() == ["green@1"]
    await house.residency.retire(version)  # already under way
    assert [name[:5] for name in house.engine.loaded.values()] == ["green"]

    house.catalog.drop_alias("green", "stable", actor="test")
    version = house.catalog.list_versions("green")[0]
    house.catalog.remove("green", 1, actor="test")
    await house.residency.retire(version)
    assert house.metrics.versions() == []
    text = generate_latest(house.metrics.registry).decode()
    assert 'adapter="red"' not in text
    assert 'adapter="green"' not in text
    house.metrics.displaced("red@1")  # the engine reports it late
    assert house.metrics.versions() == []
    other = {"adapter": OTHER, "version": ""}
    assert house.count("lorry_adapter_evictions_total", **other, tier="device") == 1


async def test_the_idle_time_of_an_evicted_version_is_observed(house):
    for model in ("red", "green", "blue"):
        await house.chat(model)
    assert house.count("lorry_adapter_eviction_idle_seconds_count") == 1
    assert house.count("lorry_adapter_eviction_idle_seconds_bucket", le="1.0") == 1
    assert house.count("lorry_adapter_evictions_total", **RED, tier="host") == 1


def call_of(name: str | None, **given) -> SimpleNamespace:
    fields = {
        "engine_id": uuid.uuid4().hex,
        "version": name and SimpleNamespace(name=name),
        "adapter_label": name or "base",
        "account": f"{name}@1" if name else "base",
        "waiting": 0,
        "sequences": [],
    }
    return SimpleNamespace(**fields | given)


def waiting(metrics: Metrics, name: str) -> float | None:
    labels = {"adapter": name, "version": "1" if name != "base" else ""}
    return metrics.registry.get_sample_value("lorry_requests_waiting", labels)


def sequence(scheduled: bool = False, finish_reason: str | None = None) -> Sequence:
    stats = Stats(scheduled_ts=1.0 if scheduled else 0.0)
    return Sequence("x", 5, stats, finish_reason=finish_reason)


def test_a_call_waits_for_its_turn_and_then_in_the_engines_queue(metrics):
    call = call_of("red", waiting=1)
    metrics.begin(call, None)
    labels = {"adapter": "red", "version": "1"}
    assert metrics.registry.get_sample_value("lorry_queue_depth", labels) == 1
    assert waiting(metrics, "red") == 1
    assert metrics.registry.get_sample_value("lorry_oldest_waiting_seconds") > 0
    call.waiting = 0
    assert metrics.registry.get_sample_value("lorry_queue_depth", labels) == 0
    assert waiting(metrics, "red") == 0  # the engine has not received it yet
    assert metrics.registry.get_sample_value("lorry_oldest_waiting_seconds") == 0
    call.sequences.append(sequence())
    assert waiting(metrics, "red") == 1
    call.sequences[0].stats.scheduled_ts = 1.0
    assert waiting(metrics, "red") == 0
    metrics.forget(call)
    assert waiting(metrics, "red") == 0


def test_a_call_on_its_way_into_the_engine_does_not_wait(metrics):
    call = call_of(None)
    metrics.begin(call, None)
    assert waiting(metrics, "base") == 0
    call.sequences.append(sequence())
    assert waiting(metrics, "base") == 1


def test_a_sequence_in_prefill_does_not_count_as_waiting(metrics):
    calls = [call_of(name) for name in ("red", "green", "blue")]
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
