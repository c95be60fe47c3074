"""Comparison of the client's records with the server's counters."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from call_records import adapter_call, base_call, failed_call
from marked_server import BASE_NAME, marked_server

from loadtest.errors import TargetUnfit
from loadtest.judge.reconcile import metrics_agree, settle
from loadtest.judge.scrape import Sample, read_sample, scrape
from loadtest.records import Agreement, Disagreement, Done, Record

EMPTY = Sample()
SPEC = {"orders@1": {"ok": 2}, "base": {"ok": 1}}
CALLS = [adapter_call(), adapter_call(), base_call()]


def counted(outcomes: dict[str, dict[str, int]], tokens: dict[str, int] | None = None) -> Sample:
    """A server's counters; by default 5 prompt and 3 output tokens per ok call."""
    lines = []
    for label, several in outcomes.items():
        name, _, version = label.partition("@")
        who = f'adapter="{name}",version="{version}"'
        for outcome, count in several.items():
            series = f'lorry_requests_total{{{who},endpoint="/v1/completions",outcome="{outcome}"}}'
            lines.append(f"{series} {count}")
        made = (tokens or {}).get(label, 3 * several.get("ok", 0))
        lines.append(f"lorry_generation_tokens_total{{{who}}} {made}")
        lines.append(f"lorry_prompt_tokens_total{{{who}}} {5 * several.get('ok', 0)}")
    return read_sample("\n".join(lines))


def agree(records, after, before=EMPTY, is_lorry=True, actions=()) -> Agreement:
    return metrics_agree(records, before, after, is_lorry, actions)


def faults(*arguments, **options) -> set[str]:
    return {each.what for each in agree(*arguments, **options).disagreements}


def test_equal_counts_agree():
    found = agree(CALLS, counted(SPEC))
    assert found == Agreement(compared=6 * 2)


def test_only_the_growth_counts():
    more = {"orders@1": {"ok": 42}, "base": {"ok": 1}, "tone@1": {"ok": 7}}
    before = {"orders@1": {"ok": 40}, "tone@1": {"ok": 7}}
    assert not faults(CALLS, counted(more), before=counted(before))


def test_a_call_missing_on_the_server_is_a_disagreement():
    found = agree(CALLS, counted({"orders@1": {"ok": 1}, "base": {"ok": 1}}))
    assert Disagreement(what="metrics, ok: orders@1", client=2, server=1) in found.disagreements


def test_a_call_counted_for_another_version_is_a_disagreement_of_both():
    found = faults(
        CALLS, counted({"orders@1": {"ok": 1}, "orders@2": {"ok": 1}, "base": {"ok": 1}})
    )
    assert {"metrics, ok: orders@1", "metrics, ok: orders@2"} <= found
    assert not any("base" in what for what in found)


def test_tokens_must_be_equal():
    assert faults(CALLS, counted(SPEC, {"orders@1": 5})) == {"metrics, output tokens: orders@1"}
    assert faults(CALLS, counted(SPEC, {"base": 4})) == {"metrics, output tokens: base"}


def test_a_call_that_hung_up_may_be_ok_or_aborted_with_more_tokens():
    calls = [adapter_call(), adapter_call(outcome="hung_up", output_tokens=2, prompt_tokens=0)]
    assert not faults(calls, counted({"orders@1": {"ok": 1, "aborted": 1}}, {"orders@1": 9}))
    assert not faults(calls, counted({"orders@1": {"ok": 2}}, {"orders@1": 5}))
    assert faults(calls, counted({"orders@1": {"ok": 1, "aborted": 1}}, {"orders@1": 4})) == {
        "metrics, output tokens: orders@1"
    }
    lost = faults(calls, counted({"orders@1": {"ok": 1}}, {"orders@1": 9}))
    assert lost == {"metrics, ok or aborted: orders@1"}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(422, "client_error"), (429, "rejected"), (503, "error"), (500, "error")],
)
def test_refusals_are_compared_by_outcome(status, outcome):
    calls = [adapter_call(), failed_call(status, served="orders@1")]
    assert not faults(calls, counted({"orders@1": {"ok": 1, outcome: 1}}))
    other = "rejected" if outcome == "client_error" else "client_error"
    assert len(faults(calls, counted({"orders@1": {"ok": 1, other: 1}}))) == 2
    assert len(faults(calls, counted({"orders@1": {"ok": 1}}))) == 1


def test_a_begun_stream_with_an_error_event_is_an_error_on_both_sides():
    broken = failed_call(200, served="orders@1", reason="stream_error_engine_dead", output_tokens=2)
    calls = [adapter_call(), broken]
    assert not faults(calls, counted({"orders@1": {"ok": 1, "error": 1}}, {"orders@1": 5}))
    assert faults(calls, counted({"orders@1": {"ok": 1, "aborted": 1}}, {"orders@1": 5}))
    assert faults(calls, counted({"orders@1": {"ok": 1}}))


def test_a_refusal_without_a_version_is_unresolved():
    calls = [failed_call(404, "nobody")]
    assert not faults(calls, counted({"_unresolved": {"client_error": 1}}))
    assert faults(calls, counted({"nobody@1": {"client_error": 1}}))


def test_a_call_without_an_answer_may_be_counted_or_not_and_is_reported():
    calls = [adapter_call(), failed_call(0, reason="timeout")]
    for outcomes in ({"ok": 1}, {"ok": 2}, {"ok": 1, "aborted": 1}, {"ok": 1, "error": 1}):
        found = agree(calls, counted({"orders@1": outcomes}))
        assert not found.disagreements
        assert "1 calls without a complete answer" in found.left_out[0]
    assert not faults(calls, counted({"orders@1": {"ok": 1}, "_unresolved": {"aborted": 1}}))
    assert faults(calls, counted({"orders@1": {"ok": 3}}))
    assert faults(calls, counted({"orders@1": {"ok": 1}, "tone@1": {"ok": 1}}))


def test_versions_beyond_the_servers_limit_are_matched_with_other():
    calls = [adapter_call(f"many-{number}") for number in range(4)]
    before = counted({"old@1": {"ok": 6}})
    folded = {"many-2@1": {"ok": 1}, "many-3@1": {"ok": 1}, "_other": {"ok": 6 + 2}}
    assert not faults(calls, counted(folded), before=before)
    folded["_other"] = {"ok": 6 + 1}
    assert "metrics, ok: _other" in faults(calls, counted(folded), before=before)
    folded["_other"] = {"ok": 6 + 3}
    assert "metrics, ok: _other" in faults(calls, counted(folded), before=before)


def test_a_restarted_server_is_not_compared():
    fewer = agree(CALLS, counted(SPEC), before=counted({"orders@1": {"ok": 40}}))
    stop = Done(phase="p", what="stop-server", began=1, ended=2)
    stopped = agree(CALLS, EMPTY, actions=[stop])
    start = [read_sample(f"process_start_time_seconds {at}") for at in (1, 2)]
    newer = agree(CALLS, start[1], before=start[0])
    for found in (fewer, stopped, newer):
        assert (found.compared, found.disagreements) == (0, ())
        assert "restarted" in found.left_out[0]


def test_an_action_on_an_adapter_named_like_a_restart_is_not_a_restart():
    publish = Done(phase="p", what="publish mcp-server@2", began=1, ended=2)
    assert agree(CALLS, counted(SPEC), actions=[publish]) == Agreement(compared=6 * 2)


def test_a_server_without_counters_is_not_compared():
    assert agree(CALLS, EMPTY).left_out == ("metrics: the server has no lorry_requests_total",)


def vllm(stop: int, length: int, abort: int, tokens: int) -> Sample:
    reasons = {"stop": stop, "length": length, "abort": abort}
    lines = [
        f'vllm:request_success_total{{finished_reason="{reason}"}} {count}'
        for reason, count in reasons.items()
    ]
    return read_sample("\n".join([*lines, f"vllm:generation_tokens_total {tokens}"]))


def test_vllms_own_server_is_compared_by_sums():
    calls = [each for each in CALLS if each.served]
    found = agree(calls, vllm(1, 2, 5, 9), is_lorry=False)
    assert found == Agreement(compared=2)
    assert faults(calls, vllm(1, 1, 5, 9), is_lorry=False) == {"metrics, ok: all models"}
    assert faults(calls, vllm(1, 2, 0, 8), is_lorry=False) == {"metrics, output tokens: all models"}
    left = [*calls, adapter_call(served="", outcome="hung_up", output_tokens=2)]
    assert not faults(left, vllm(1, 2, 1, 12), is_lorry=False)
    assert faults(left, vllm(1, 2, 1, 10), is_lorry=False)


async def test_settling_waits_until_counts_agree_or_time_is_up():
    late = [counted({"orders@1": {"ok": 1}}), counted(SPEC)]
    scrapes = 0

    async def look() -> Sample:
        nonlocal scrapes
        scrapes += 1
        return late[min(scrapes, len(late)) - 1]

    found = await settle(look, lambda after: agree(CALLS, after))
    assert (found.disagreements, scrapes) == ((), 2)
    missing = await settle(look, lambda after: agree(CALLS[:1], after), seconds=0.15)
    assert missing.disagreements


async def test_a_failed_scrape_is_reported():
    async def look() -> Sample:
        raise TargetUnfit("it can't be reached")

    found = await settle(look, lambda after: agree(CALLS, after))
    assert found == Agreement(left_out=("metrics: it can't be reached",))


async def ask(session: aiohttp.ClientSession, url: str, model: str) -> Record:
    """A call to the stand-in engine, which counts 5 prompt and 3 output tokens."""
    body = {"model": model, "prompt": "hello"}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        served = response.headers.get("x-lorry-adapter", "")
        if response.status != 200:
            return failed_call(response.status, model, served=served)
        answered = (await response.json())["model"]
        fields = {"model": model, "served": served, "answered": answered}
        return adapter_call(**fields, is_base=model == BASE_NAME)


async def test_lorrys_counters_agree_with_its_calls_and_differ_with_one_less(tmp_path):
    with marked_server(tmp_path, "orders", "tone") as server:
        async with aiohttp.ClientSession() as session:

            async def look() -> Sample:
                return await scrape(session, server.url, {})

            before = await look()
            models = ["orders", "tone", BASE_NAME, "nobody", "orders@1", "orders@9"]
            calls = await asyncio.gather(*(ask(session, server.url, model) for model in models))
            found = await settle(look, lambda after: agree(calls, after, before))
            fewer = agree(calls[1:], await look(), before)
    assert (found.disagreements, found.left_out) == ((), ())
    assert found.compared >= 6 * 4
    assert "metrics, ok: orders@1" in {each.what for each in fewer.disagreements}
