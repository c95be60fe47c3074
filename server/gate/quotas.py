"""Holds calls to the limits of their key, of their adapter, and of the key on the adapter.

A call takes a request and a place in flight when it arrives, and reserves its prompt and the most
that it may answer once the prompt's tokens are known. What it uses is counted as the engine makes
it (server/gate/meters.py) and settled at its end. All of it is memory: where servers share limits,
server/gate/sharing.py tells each what it may use, and a call waits for that only where its server's
share is used up and the limit is not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from adapters.catalog.limits import RuleId, period_at
from adapters.keys import RateLimits
from server.call import Call
from server.engine.interface import Work
from server.errors import InsufficientQuota, RateLimitExceeded, RequestError, RequestExceedsLimit
from server.gate.meters import Kind, Meter, Running
from server.gate.windows import Entry
from server.telemetry.metrics import Metrics

TICK_SECONDS = 0.25  # in which what running calls use is counted
SHARE_SECONDS = 2.0  # for which a call waits for a larger share of a limit that has room
IDLE_SECONDS = 600.0  # after which a rule that no call meets is forgotten
_FIRST_PACE = 0.05  # seconds a token, until a call has ended
_PACE_WEIGHT = 0.1  # of the latest call
_NO_LIMITS = RateLimits()
_LEAST_RUN = 1.0  # seconds that a running call is expected to go on, at least
_TOKENS: tuple[Kind, ...] = ("tokens", "budget")


@dataclass(slots=True, eq=False)
class Rule:
    """The limits of a key, of an adapter or of a key on an adapter, with their accounts."""

    id: RuleId
    limits: RateLimits
    meters: dict[Kind, Meter] = field(default_factory=dict)
    running: set[Allowance] = field(default_factory=set)
    last_met: float = 0.0

    def __str__(self) -> str:
        key = f"the key `{self.id.key}`" if self.id.key else ""
        adapter = f"the adapter `{self.id.adapter}`" if self.id.adapter else ""
        return " on ".join(each for each in (key, adapter) if each)


@dataclass(slots=True, eq=False)
class Allowance:
    """What one call has taken: `Call.allowance` of server/call.py."""

    call: Call
    quotas: Quotas
    meters: tuple[tuple[Rule, Meter], ...]  # as they were when it arrived
    marks: list[tuple[Meter, Entry]] = field(default_factory=list)  # of its request
    is_running: bool = False
    reserved: int = 0  # tokens
    counted: int = 0

    async def reserve(self, work: Work) -> None:
        """Reserve the tokens of one of its requests to the engine; raises RequestError."""
        if not work.is_again:
            await self.quotas.reserve(self, work.prompt + work.sequences * work.tokens)

    def headers(self) -> dict[str, str]:
        return self.quotas.headers(self)

    def of(self, *kinds: Kind) -> Iterator[tuple[Rule, Meter]]:
        return (each for each in self.meters if each[1].kind in kinds)

    @property
    def held(self) -> int:
        """Tokens that it may still use."""
        return max(self.reserved - self.counted, 0)


class Quotas:
    """`set_rules` gives the limits of adapters and of keys on adapters; a key brings its own.

    `clock` is monotonic, `wall` is Unix time; both in seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        count_cached: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._count_cached = count_cached
        self.clock = clock
        self._wall = wall
        self._limits: Mapping[RuleId, RateLimits] = {}
        self._rules: dict[RuleId, Rule] = {}
        self._pace = _FIRST_PACE
        self._round = asyncio.Event()
        # Of server/gate/sharing.py: a call waits for the next round; which limits others share.
        self.wanted = asyncio.Event()
        self.shared: frozenset[Kind] = frozenset()

    # ---- a call

    async def arrive(self, call: Call) -> None:
        """Take a request and a place of each limit that the call meets.

        Raises RateLimitExceeded or InsufficientQuota.
        """
        meters = tuple((rule, each) for rule in self._meet(call) for each in rule.meters.values())
        if not meters:
            return
        allowance = Allowance(call, self, meters)
        call.allowance = allowance
        await self._await_room(allowance.of("requests", "in_flight", "budget"), 1)
        now = self.clock()
        allowance.is_running = True
        for rule, meter in meters:
            rule.running.add(allowance)
            if meter.kind == "requests":
                allowance.marks.append((meter, meter.take(1, now)))
            elif meter.kind == "in_flight":
                meter.hold(1)

    async def reserve(self, allowance: Allowance, tokens: int) -> None:
        """Raises RateLimitExceeded, InsufficientQuota or RequestExceedsLimit."""
        for rule, meter in allowance.of(*_TOKENS):
            # With its other prompts, which it holds meanwhile.
            if (most := allowance.reserved + tokens) > meter.limit:
                raise self._exceeds(rule, meter, most)
        await self._await_room(allowance.of(*_TOKENS), tokens)
        if allowance.is_running:  # its caller has not hung up meanwhile
            allowance.reserved += tokens
            for _, meter in allowance.of(*_TOKENS):
                meter.hold(tokens)

    def settle(self, call: Call) -> None:
        """The call has ended: count what it has used, and let go of the rest."""
        allowance = call.allowance
        if not isinstance(allowance, Allowance) or not allowance.is_running:
            return
        self._count(allowance, has_ended=True)
        allowance.is_running = False
        now = self.clock()
        for rule, meter in allowance.meters:
            rule.running.discard(allowance)
            if meter.kind == "in_flight":
                meter.release(1)
            elif meter.kind == "tokens":
                meter.release(allowance.held)
            elif meter.kind == "budget":  # as the usage table: at its end
                meter.release(allowance.reserved)
                meter.count(allowance.counted, now)
        is_ours = call.outcome in ("rejected", "error") and call.status != 504  # its own deadline
        if not call.sequences and is_ours:
            for meter, mark in allowance.marks:
                meter.give_back(1, mark)
        if call.generation_tokens:
            pace = call.duration / call.generation_tokens
            self._pace += _PACE_WEIGHT * (pace - self._pace)

    # ---- between calls

    async def run(self) -> None:
        """Count what running calls use, until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.tick()

    def tick(self) -> None:
        """Count what running calls have used so far; forget rules that no call meets."""
        now = self.clock()
        for allowance in {each for rule in self._rules.values() for each in rule.running}:
            self._count(allowance, has_ended=False)
        for rule in self.rules():
            if not rule.running and now - rule.last_met > IDLE_SECONDS:
                del self._rules[rule.id]

    def set_rules(self, limits: Mapping[RuleId, RateLimits]) -> None:
        """What the catalog says now: in force with the next call."""
        self._limits = limits

    def rules(self) -> list[Rule]:
        """Those that calls have met of late."""
        return list(self._rules.values())

    def moment(self) -> datetime:
        """Now, as the calendar has it."""
        return datetime.fromtimestamp(self._wall(), UTC)

    def round_ended(self) -> None:
        """Shares are new: whoever waits for one looks again."""
        self.wanted.clear()
        self._round.set()
        self._round = asyncio.Event()

    def headers(self, allowance: Allowance) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*`: for requests and for tokens, the limit with the least left."""
        now = self.clock()
        found: dict[str, str] = {}
        for name, kinds in (("requests", ("requests",)), ("tokens", _TOKENS)):
            left = [(meter.remaining(now), rule, meter) for rule, meter in allowance.of(*kinds)]
            if not left:
                continue
            remaining, rule, meter = min(left, key=lambda each: each[0])
            most = max((each.reserved - each.counted for each in rule.running), default=0)
            reset = meter.empty_at(now, now + max(most * self._pace, _LEAST_RUN)) - now
            found[f"x-ratelimit-limit-{name}"] = str(meter.limit)
            found[f"x-ratelimit-remaining-{name}"] = str(remaining)
            found[f"x-ratelimit-reset-{name}"] = as_duration(reset)
        return found

    # ---- rules

    def _meet(self, call: Call) -> Iterator[Rule]:
        """The rules of a call's key, of its adapter, and of its key on its adapter.

        A sum meets those of each of its parts.
        """
        key = call.key
        if key is not None and key.limits != _NO_LIMITS:
            yield self._rule(RuleId(key.name, ""), key.limits)
        if not self._limits:
            return
        owners = {"", key.name if key is not None else ""}
        for id_ in {RuleId(owner, adapter) for owner in owners for adapter in call.adapters}:
            if (limits := self._limits.get(id_)) is not None:
                yield self._rule(id_, limits)

    def _rule(self, id_: RuleId, limits: RateLimits) -> Rule:
        rule = self._rules.get(id_)
        if rule is None:
            rule = self._rules[id_] = Rule(id_, limits)
            self._fit(rule, limits)
        elif rule.limits != limits:
            self._fit(rule, limits)
        rule.last_met = self.clock()
        budget = rule.meters.get("budget")
        if budget is not None and rule.last_met >= budget.ends:
            self._begin_period(rule, budget)
        return rule

    def _fit(self, rule: Rule, limits: RateLimits) -> None:
        """Give a rule its limits; what is used of those that stay is kept."""
        if period_of(rule.limits) != period_of(limits):
            rule.meters.pop("budget", None)
        rule.limits = limits
        for kind, limit in by_kind(limits).items():
            if limit is None:
                rule.meters.pop(kind, None)
            elif kind in rule.meters:
                rule.meters[kind].limit = limit
            else:
                rule.meters[kind] = Meter(kind, limit, share=0 if kind in self.shared else None)

    def _begin_period(self, rule: Rule, budget: Meter) -> None:
        assert rule.limits.budget is not None
        now = self.moment()
        began, next_began = period_at(rule.limits.budget, now)
        if budget.began is not None:
            budget.spent = budget.counted = 0
        budget.began = began
        budget.ends = self.clock() + (next_began - now).total_seconds()

    # ---- room

    async def _await_room(self, wanted: Iterable[tuple[Rule, Meter]], amount: int) -> None:
        """Return when each of the meters has room; raises RequestError where one has not."""
        meters = tuple(wanted)
        until = self.clock() + SHARE_SECONDS
        while lacking := self._lacking(meters, amount):
            now = self.clock()
            full = [each for each in lacking if not each[1].is_short(amount, now)]
            if full or now >= until:
                raise self._refusal(full or lacking, amount, now)
            await self._await_share([meter for _, meter in lacking], amount, until - now)

    def _lacking(
        self, meters: Iterable[tuple[Rule, Meter]], amount: int
    ) -> list[tuple[Rule, Meter]]:
        now = self.clock()
        return [each for each in meters if not each[1].has_room(amount, now)]

    async def _await_share(self, meters: list[Meter], amount: int, seconds: float) -> None:
        """Wait for the next round in which servers divide the limits."""
        for meter in meters:
            meter.short += amount
        self.wanted.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._round.wait()
        finally:
            for meter in meters:
                meter.short -= amount

    def _exceeds(self, rule: Rule, meter: Meter, amount: int) -> RequestExceedsLimit:
        self._metrics.limit_refused("too_large")
        return RequestExceedsLimit(
            f"The call may use {amount} tokens, its prompt and the most that it may answer. The "
            f"limit of {rule} is {meter.limit} {_unit(rule, meter)}: lower `max_tokens`, or send "
            "less."
        )

    def _refusal(self, full: list[tuple[Rule, Meter]], amount: int, now: float) -> RequestError:
        """The error for the limit that lasts longest."""
        moments = [
            (meter.room_at(amount, now, self._running(rule, meter, now)), rule, meter)
            for rule, meter in full
        ]
        moment, rule, meter = max(moments, key=lambda each: each[0])
        self._metrics.limit_refused(meter.kind)
        seconds = max(moment - now, 0.001)
        limit = f"{meter.limit} {_unit(rule, meter)}"
        said = f"{rule} may have {limit}, of which {meter.remaining(now)} are left"
        if meter.kind in _TOKENS:
            said += f"; the call may use {amount}"
        said = said[0].upper() + said[1:]
        if meter.kind == "budget":
            return InsufficientQuota(
                f"{said}. The next period begins in {as_duration(seconds)}.", retry_after=seconds
            )
        return RateLimitExceeded(
            f"{said}. Try again in {as_duration(seconds)}.", retry_after=seconds
        )

    def _running(self, rule: Rule, meter: Meter, now: float) -> Iterator[Running]:
        """The calls that hold some of a meter; they are expected to go on at the pace of others."""
        for each in rule.running:
            held = 1 if meter.kind == "in_flight" else each.held if meter.kind == "tokens" else 0
            if held and any(meter is its for _, its in each.meters):
                yield Running(now + max(each.held * self._pace, _LEAST_RUN), held)

    def _count(self, allowance: Allowance, *, has_ended: bool) -> None:
        """Count what a call has used since the last time."""
        used = charged(allowance.call, count_cached=self._count_cached, has_ended=has_ended)
        # Less than before, if the engine has ended and the call is asked again.
        more, before = used - allowance.counted, allowance.held
        if more <= 0:
            return
        allowance.counted = used
        now = self.clock()
        for _, meter in allowance.of("tokens"):
            meter.release(before - allowance.held)
            meter.count(more, now)


def by_kind(limits: RateLimits) -> dict[Kind, int | None]:
    return {
        "requests": limits.requests_per_minute,
        "tokens": limits.tokens_per_minute,
        "in_flight": limits.in_flight,
        "budget": None if limits.budget is None else limits.budget.tokens,
    }


def period_of(limits: RateLimits) -> str | None:
    return None if limits.budget is None else limits.budget.period


def charged(call: Call, *, count_cached: bool, has_ended: bool) -> int:
    """The tokens that a call has used: prompts once they are answered, and answers so far."""
    total = 0
    for sequence in call.sequences:
        if has_ended or sequence.stats.first_token_ts:
            total += sequence.stats.num_generation_tokens
            if not sequence.shares_prompt:
                total += sequence.prompt_tokens - (0 if count_cached else sequence.cached_tokens)
    return total


def as_duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`, `2h5m0s`."""
    milliseconds = max(math.ceil(seconds * 1000), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest // 1000}s"
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _unit(rule: Rule, meter: Meter) -> str:
    match meter.kind:
        case "budget":
            return f"tokens a {period_of(rule.limits)}"
        case "in_flight":
            return "calls in flight"
        case _:
            return f"{meter.kind} a minute"
