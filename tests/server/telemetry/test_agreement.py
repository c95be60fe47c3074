"""Headers, metrics, spans and log agree on every call of a run with random failures."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from agreement import HEADERS, SPAN
from opentelemetry.trace import format_trace_id
from standin_server import House, Stats, publish

from server.call import Sequence, current_call
from server.engine.interface import EngineGone, EngineRefusal

MODELS = ("tiny", "red", "green", "blue", "grey")
CALLS = 300


class Chaos:
    """A stand-in app that answers, fails, stops or hangs at random."""

    def __init__(self, house: House, seed: int) -> None:
        self.house = house
        self.dice = random.Random(seed)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        call = current_call.get()
        assert call is not None
        kind = self.dice.choice(["ok"] * 6 + ["raise", "late", "abort", "die", "refuse", "hang"])
        if kind == "raise":
            raise RuntimeError("odd")
        if kind == "refuse":
            call.late_status = self.dice.choice([400, 503])
            call.error_code = "invalid_request"
        for number in range(self.dice.randint(1, 3)):
            self.add_sequence(call, number, kind)
        await asyncio.sleep(self.dice.random() / 100)
        if kind == "hang":
            await asyncio.sleep(60)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if kind == "die":
            call.engine_error = "EngineDeadError"
        await send({"type": "http.response.body", "body": b"{}"})
        if kind == "late":
            raise RuntimeError("after the answer")

    def add_sequence(self, call: Any, number: int, kind: str) -> None:
        at, count = call.started, self.dice.randint(1, 9)
        reason = {"ok": "stop", "abort": "abort", "die": "error"}.get(kind)
        stats = Stats(count, at + 0.001, at + 0.002, at + 0.003, at + 0.004)
        sequence = Sequence(f"cmpl-{call.engine_id}-{number}", 5, stats, number > 0, 2, reason)
        call.sequences.append(sequence)
        for _ in range(count - 1):
            self.house.metrics.token_made(call, 0.001)

    async def call(self, seen: list[Any]) -> None:
        model = self.dice.choice([*MODELS * 4, "nobody", "red@9", ""])
        task = asyncio.create_task(self.house.chat(model))
        done, _ = await asyncio.wait({task}, timeout=0.15)
        if not done:
            task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        seen.append(ended)

    async def run(self) -> list[Any]:
        self.house.inner.answer = self.answer
        seen: list[Any] = []
        for _ in range(CALLS // 10):
            if self.dice.random() < 0.3:
                self.house.engine.failures = [self.dice.choice([EngineRefusal, EngineGone])("no")]
            await asyncio.gather(*(self.call(seen) for _ in range(10)))
        return seen


def totals(house: House, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for family in house.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in labels)] += sample.value
    return +found


@pytest.mark.parametrize("limit", [100, 2])
async def test_headers_metrics_spans_and_log_agree(house, limit):
    house.metrics._ledger._limit = limit
    publish(house.catalog, "grey")
    seen = await Chaos(house, seed=limit).run()
    house.tracing.provider.force_flush()
    spans = {
        format_trace_id(span.context.trace_id): span
        for span in house.spans.get_finished_spans()
        if span.kind.name == "SERVER"
    }
    lines = {line["trace_id"]: line for line in house.log}
    assert len(seen) == len(lines) == len(house.log) == CALLS
    assert set(spans) == set(lines)
    outcomes = Counter(line["outcome"] for line in lines.values())
    assert set(outcomes) == {"ok", "client_error", "rejected", "aborted", "error"}

    answers = [each for each in seen if not isinstance(each, BaseException)]
    assert len(answers) > CALLS / 2
    for response in answers:
        line = lines[response.headers["traceresponse"].split("-")[1]]
        assert response.status_code == line["status"]
        named = line["adapter"] if line["version"] is None else line["served_model"]
        assert response.headers.get("x-lorry-adapter", "_unresolved") == named
        for header, field in HEADERS.items():
            assert response.headers.get(header, line[field]) == line[field]

    for trace, line in lines.items():
        attributes = spans[trace].attributes
        for name, field in SPAN.items():
            assert attributes.get(name) == line[field], (name, line)
        assert list(attributes.get("gen_ai.response.finish_reasons", ())) == line["finish_reasons"]
        assert ("error.type" in attributes) == (line["outcome"] != "ok")

    assert_metrics_agree(house, list(lines.values()), are_folded=limit == 2)


def assert_metrics_agree(house: House, lines: list[dict[str, Any]], are_folded: bool) -> None:
    names = [] if are_folded else ["adapter", "version"]

    def summed(field: str) -> Counter[tuple[str, ...]]:
        found: Counter[tuple[str, ...]] = Counter()
        for line in lines:
            found[tuple(str(line[name] or "") for name in names)] += line[field]
        return +found

    by_outcome = Counter(
        tuple(str(line[name] or "") for name in [*names, "endpoint", "outcome"]) for line in lines
    )
    assert totals(house, "lorry_requests_total", *names, "endpoint", "outcome") == by_outcome
    for series, field in (
        ("prompt_tokens", "prompt_tokens"),
        ("generation_tokens", "generation_tokens"),
        ("cached_prompt_tokens", "cached_prompt_tokens"),
    ):
        assert totals(house, f"lorry_{series}_total", *names) == summed(field), series
    reasons = Counter(reason for line in lines for reason in line["finish_reasons"])
    made = totals(house, "lorry_finished_sequences_total", "reason")
    assert made == {(reason,): count for reason, count in reasons.items()}
    firsts = sum(line["ttft_seconds"] is not None for line in lines)
    assert totals(house, "lorry_time_to_first_token_seconds_count")[()] == firsts
    assert totals(house, "lorry_request_duration_seconds_count")[()] == len(lines)
    assert not totals(house, "lorry_requests_in_flight", *names)
    assert not totals(house, "lorry_requests_waiting", *names)
