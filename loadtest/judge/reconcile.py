"""Whether a server's counters grew by what the client saw.

A server may count a call shortly after the client has received its end: see `settle`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import msgspec

from loadtest.errors import TargetUnfit
from loadtest.judge.scrape import (
    GENERATION_TOKENS,
    PROCESS_START,
    PROMPT_TOKENS,
    REQUESTS,
    VLLM_GENERATION_TOKENS,
    VLLM_REQUESTS,
    Sample,
)
from loadtest.judge.tally import Bound, Key, Kind, Tally, Which
from loadtest.records import Agreement, Disagreement, Done, Record

SETTLE_SECONDS = 3.0
_PAUSE_SECONDS = 0.1
_OTHER: Key = ("_other", "")  # the label of all versions beyond the server's limit
_ALL: Key = ("all models", "")
_POWER = ("stop-server", "start-server")  # actions
_UNFINISHED = ("abort", "error")  # vLLM's finish reasons of calls without an answer

# Compared counts: the server's outcomes; the client's outcomes that are certainly, or maybe, in it.
_CALLS: dict[str, tuple[tuple[str, ...], tuple[Kind, ...], tuple[Kind, ...]]] = {
    "ok": (("ok",), ("ok",), ("hung_up",)),
    "ok or aborted": (("ok", "aborted"), ("ok", "hung_up"), ()),
    "client errors": (("client_error",), ("client_error",), ()),
    "rejected or failed": (("rejected", "error"), ("rejected", "error"), ()),
}
_TOKENS: dict[Which, str] = {"prompt": PROMPT_TOKENS, "output": GENERATION_TOKENS}


def metrics_agree(
    records: Sequence[Record],
    before: Sample,
    after: Sample,
    is_lorry: bool,
    actions: Iterable[Done] = (),
) -> Agreement:
    """Compare all calls of a run with the counters before its first and after its last call.

    No other client may call the server meanwhile. For vLLM's own server, whose counters have no
    adapters, only sums are compared.
    """
    requests = REQUESTS if is_lorry else VLLM_REQUESTS
    if (reason := _incomparable(before, after, requests, actions)) is not None:
        return Agreement(left_out=(f"metrics: {reason}",))
    if is_lorry:
        tally = Tally(records)
        return _agreement(tally, *_compare_lorry(tally, before, after))
    tally = Tally(_as_one(record) for record in records)
    return _agreement(tally, *_compare_vllm(tally, before, after))


async def settle(
    scrape: Callable[[], Awaitable[Sample]],
    compare: Callable[[Sample], Agreement],
    seconds: float = SETTLE_SECONDS,
) -> Agreement:
    """Compare repeatedly until all agrees or `seconds` have passed; report a failed scrape."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = compare(await scrape())
        except TargetUnfit as error:
            return Agreement(left_out=(f"metrics: {error}",))
        if not found.disagreements or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_PAUSE_SECONDS)


def were_powered(actions: Iterable[Done]) -> bool:
    """Whether an action stopped or started the server, which resets its counters."""
    return any(each.what in _POWER for each in actions)


def _incomparable(
    before: Sample, after: Sample, requests: str, actions: Iterable[Done]
) -> str | None:
    started = [sample.counters.get(PROCESS_START) for sample in (before, after)]
    went_down = after.total(requests) < before.total(requests)
    if started[0] != started[1] or went_down or were_powered(actions):
        return "the server restarted meanwhile, which resets its counters"
    if requests not in after.counters:
        return f"the server has no {requests}"
    return None


def _agreement(tally: Tally, compared: int, disagreements: list[Disagreement]) -> Agreement:
    unclear = f"metrics: {tally.unclear} calls without a complete answer, with unknown outcome"
    return Agreement(
        compared=compared,
        disagreements=tuple(disagreements),
        left_out=(unclear,) if tally.unclear else (),
    )


Compared = tuple[int, list[Disagreement]]
Bounds = Callable[[Key], Bound]


def _compare_lorry(tally: Tally, before: Sample, after: Sample) -> Compared:
    found = []
    for what, (outcomes, sure, maybe) in _CALLS.items():
        bounds = partial(tally.calls, sure=sure, maybe=maybe)
        found.append(_compare(what, tally, bounds, _grown(before, after, REQUESTS, outcomes)))
    for which, series in _TOKENS.items():
        bounds = partial(tally.tokens, which=which)
        found.append(_compare(f"{which} tokens", tally, bounds, _grown(before, after, series)))
    return sum(count for count, _ in found), [each for _, several in found for each in several]


def _grown(
    before: Sample, after: Sample, name: str, outcomes: tuple[str, ...] = ()
) -> dict[Key, float]:
    """Growth by version; with `outcomes`, of these outcomes alone."""
    sums: dict[Key, float] = defaultdict(float)
    for labels, growth in after.growth(before, name).items():
        named = dict(labels)
        if not outcomes or named.get("outcome") in outcomes:
            sums[named.get("adapter", ""), named.get("version", "")] += growth
    return sums


def _compare(what: str, tally: Tally, bounds: Bounds, grown: dict[Key, float]) -> Compared:
    """Compare by version; missing calls may be in `_other`, which must have grown by as much."""
    keys = sorted((tally.keys | grown.keys()) - {_OTHER})
    other = grown.get(_OTHER, 0.0)
    missing, room, found = 0.0, 0.0, []
    for key in keys:
        bound, server = bounds(key), grown.get(key, 0.0)
        lacks = max(bound.low - server, 0.0)
        missing += lacks
        room += max(bound.high - server, 0.0)
        if server > bound.high or (lacks and not other):
            found.append(_disagreement(what, key, bound, server))
    if other and not missing <= other <= room:
        found.append(_disagreement(what, _OTHER, Bound(missing, room), other))
    return len(keys) + bool(other), found


def _compare_vllm(tally: Tally, before: Sample, after: Sample) -> Compared:
    finished = sum(
        growth
        for labels, growth in after.growth(before, VLLM_REQUESTS).items()
        if dict(labels).get("finished_reason") not in _UNFINISHED
    )
    tokens = after.total(VLLM_GENERATION_TOKENS) - before.total(VLLM_GENERATION_TOKENS)
    pairs = [
        ("ok", tally.calls(_ALL, ("ok",), ("hung_up",)), finished),
        ("output tokens", tally.tokens(_ALL, "output"), tokens),
    ]
    return len(pairs), [
        _disagreement(what, _ALL, bound, server)
        for what, bound, server in pairs
        if not bound.low <= server <= bound.high
    ]


def _as_one(record: Record) -> Record:
    return msgspec.structs.replace(record, served=_ALL[0], model=_ALL[0], is_base=False)


def _disagreement(what: str, key: Key, bound: Bound, server: float) -> Disagreement:
    client = bound.low if server < bound.low else bound.high
    who = "@".join(part for part in key if part)
    return Disagreement(what=f"metrics, {what}: {who}", client=client, server=server)
