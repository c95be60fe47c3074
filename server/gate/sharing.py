"""Writes what calls have used, and divides limits between the servers that share a catalog.

Rounds run beside the calls, in a thread. A round lets go of what this server does not need by what
it heard in the round before, then writes; what it gains counts only once that is written. So the
shares of all servers never add up to more than a limit, and each holds its calls to its share. A
budget's share is of what the usage leaves of it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from adapters.catalog.limits import Limits, RuleId
from adapters.catalog.shares import (
    WINDOWS,
    Others,
    Stake,
    StakeId,
    begin_round,
    put_down,
    withdraw,
)
from adapters.catalog.usage import Amounts, Spending, UsageBook, UsageId, write_usage
from adapters.errors import AdapterError
from server.gate.meters import Meter, divide
from server.gate.quotas import Quotas
from server.gate.usage import UsageCounts
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.limits")

ROUND_SECONDS = 0.25  # between rounds while servers share limits that calls meet
USAGE_SECONDS = 2.0  # between two writes of the usage: what a killed server loses at most
ALONE_SECONDS = 5.0  # without a round, after which a server goes on alone ...
UNHEARD_SECONDS = 1.0  # ... with a limit in which it never had a share
COMPLAINT_SECONDS = 60.0
RULES_SECONDS = 0.5
_SOON_SECONDS = 0.05  # before a round that a call waits for, which the others must have seen
_DEMAND_KEPT = 0.9  # of the demand, from one round to the next

_NONE = Others(0, {})


@dataclass(slots=True)
class Entry:
    """A meter as it stands when a round begins."""

    rule: RuleId
    meter: Meter
    stake: Stake
    limit: int
    began: datetime | None  # of a budget: its period
    counted: int  # of a budget: what the round writes into the usage


@dataclass(frozen=True, slots=True)
class Heard:
    """What a round has found: the other servers, what is spent of budgets, and our new stakes."""

    others: Others
    spent: Mapping[RuleId, int]
    stakes: Mapping[StakeId, Stake]


class RulesWatch:
    """Takes over the limits of adapters, and of keys on adapters, as the catalog changes."""

    def __init__(self, limits: Limits, quotas: Quotas) -> None:
        self._limits = limits
        self._quotas = quotas
        self._unreadable: str | None = None

    async def run(self) -> None:
        """Follow the catalog until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(RULES_SECONDS)

    async def look(self) -> None:
        try:
            known = self._limits.remembered()
            if known is None:
                known = await asyncio.to_thread(self._limits.all)
            self._quotas.set_rules(known)
        except AdapterError as error:
            if error.code != self._unreadable:  # not every time
                logger.warning("the limits can't be read, those known hold: %s", error)
            self._unreadable = error.code
        else:
            self._unreadable = None


class Sharing:
    def __init__(
        self,
        book: UsageBook,
        quotas: Quotas,
        counts: UsageCounts,
        metrics: Metrics,
        *,
        count_cached: bool = False,
    ) -> None:
        self._book = book
        self._quotas = quotas
        self._counts = counts
        self._spending = Spending(count_cached)
        self._server = uuid.uuid4().hex
        self._is_prepared = False
        self._others = _NONE
        self._put: dict[StakeId, Stake] = {}
        self._wrote_at = self._last_round = self._quotas.clock()
        self._complained_at: float | None = None
        self._turn = asyncio.Lock()
        self._exchanging: asyncio.Future[Heard] | None = None
        quotas.shared = frozenset(
            ("requests", "tokens", "in_flight", "budget") if book.is_shared else ("budget",)
        )
        metrics.derive(
            "usage_unwritten_seconds",
            "Time since the usage was last written, while some is not; 0 when all is.",
            (),
            lambda: [((), self.unwritten_seconds)],
        )

    @property
    def unwritten_seconds(self) -> float:
        return self._quotas.clock() - self._wrote_at if self._counts.has_new else 0.0

    async def run(self) -> None:
        """Hold rounds until cancelled."""
        while True:
            await self._wait()
            await self.hold_round()

    async def _wait(self) -> None:
        """Until the next round is due: soon where a call waits for it."""
        try:
            async with asyncio.timeout(ROUND_SECONDS):
                await self._quotas.wanted.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_SOON_SECONDS)

    async def hold_round(self, *, is_last: bool = False) -> None:
        """Write and share what there is; an error is logged, and the server goes on alone."""
        async with self._turn:
            is_due = is_last or self._quotas.clock() - self._wrote_at >= USAGE_SECONDS
            if not (self._book.is_shared or is_due or self._quotas.wanted.is_set()):
                return
            usage = self._counts.take_new() if is_due else {}
            entries = self._begin(is_writing=is_due)
            if not (usage or entries or self._put):
                self._last_round = self._quotas.clock()
                if is_due:
                    self._wrote_at = self._last_round
                self._quotas.round_ended()
                return
            try:
                heard = await self._in_thread(usage, entries, is_last)
            except AdapterError as error:
                self._counts.put_back(usage)
                self._go_on_alone(error, entries)
            except asyncio.CancelledError:
                self._counts.put_back(usage)
                raise
            else:
                self._apply(heard, entries)
                self._last_round = self._quotas.clock()
                if is_due:
                    self._wrote_at = self._last_round
                self._welcome_back()
            self._quotas.round_ended()

    async def close(self) -> None:
        """Write what is left, and give back this server's shares."""
        await self.hold_round(is_last=True)

    async def _in_thread(
        self, usage: Mapping[UsageId, Amounts], entries: Mapping[StakeId, Entry], is_last: bool
    ) -> Heard:
        """One exchange after the other, even if a round was cancelled: the totals of an earlier one
        must not come after those of a later one. Raises an AdapterError."""
        if self._exchanging is not None:
            await asyncio.wait({self._exchanging})
            self._exchanging.exception()  # so that one that nobody waited for is no warning
        self._exchanging = asyncio.ensure_future(
            asyncio.to_thread(self._exchange, usage, entries, is_last)
        )
        return await asyncio.shield(self._exchanging)

    # ---- before and after a round, in the event loop

    def _begin(self, *, is_writing: bool) -> dict[StakeId, Entry]:
        """The meters to share, each let go of what this server does not need."""
        now = self._quotas.clock()
        entries: dict[StakeId, Entry] = {}
        for rule in self._quotas.rules():
            for meter in rule.meters.values():
                if meter.kind not in self._quotas.shared:
                    continue
                id_ = StakeId(*rule.id, meter.kind)
                used = meter.used(now)
                share = used if meter.share is None else meter.share
                stake = Stake(share, used, meter.demand, meter.short)
                target = divide(meter.limit - meter.spent, stake, self._others.stakes.get(id_, ()))
                if self._book.is_shared and target < share:
                    meter.share = target
                    stake = replace(stake, share=target)
                counted = meter.counted if is_writing else 0
                meter.demand *= _DEMAND_KEPT
                entries[id_] = Entry(rule.id, meter, stake, meter.limit, meter.began, counted)
        return entries

    def _apply(self, heard: Heard, entries: Mapping[StakeId, Entry]) -> None:
        self._others = heard.others
        for id_, entry in entries.items():
            meter = entry.meter
            if meter.began != entry.began:
                continue  # a new period has begun meanwhile
            meter.counted -= entry.counted
            meter.spent = heard.spent.get(entry.rule, 0) if meter.kind == "budget" else 0
            meter.elsewhere = sum(each.used for each in heard.others.stakes.get(id_, ()))
            stake = heard.stakes.get(id_)
            meter.share = None if stake is None else stake.share
            meter.is_heard = True

    def _go_on_alone(self, error: AdapterError, entries: Mapping[StakeId, Entry]) -> None:
        now = self._quotas.clock()
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            logger.error("usage can't be written, each server holds limits by itself: %s", error)
        silent = now - self._last_round
        for entry in entries.values():
            meter = entry.meter
            patience = ALONE_SECONDS if meter.is_heard else UNHEARD_SECONDS
            if meter.share is not None and silent >= patience:
                equal = (meter.limit - meter.spent) // (self._others.count + 1)
                meter.share = max(meter.share, equal)

    def _welcome_back(self) -> None:
        if self._complained_at is not None:
            self._complained_at = None
            logger.warning("usage is written and limits are shared again")

    # ---- a round, in a thread

    def _exchange(
        self,
        usage: Mapping[UsageId, Amounts],
        entries: Mapping[StakeId, Entry],
        is_last: bool,
    ) -> Heard:
        """Raises an AdapterError."""
        if not self._is_prepared:
            self._book.prepare()
        self._is_prepared = False  # until this round has worked: the tables may be gone
        budgets = {each.rule: each.began for each in entries.values() if each.began is not None}
        with self._book.writing() as connection:
            others = begin_round(connection, self._server) if self._book.is_shared else _NONE
            write_usage(connection, self._server, usage)
            spent = self._spending.read(connection, budgets, self._quotas.moment())
            if not self._book.is_shared:
                self._is_prepared = True
                return Heard(others, spent, {})
            own = {
                id_: _grown(entry, others.stakes.get(id_, ()), spent.get(entry.rule, 0))
                for id_, entry in entries.items()
            }
            if is_last:
                own = {id_: _last(stake, id_) for id_, stake in own.items()}
            put_down(connection, self._server, _changed(self._put, own))
            withdraw(connection, self._server, self._put.keys() - own.keys())
        self._is_prepared = True
        self._put = own
        return Heard(others, spent, own)


def _grown(entry: Entry, others: Sequence[Stake], spent: int) -> Stake:
    """This server's stake with all that it may have now."""
    is_budget = entry.began is not None
    own = replace(
        entry.stake,
        share=max(entry.stake.share - entry.counted, 0),
        used=max(entry.stake.used - entry.counted, 0),
    )
    limit = entry.limit - (spent if is_budget else 0)
    return replace(own, share=max(divide(limit, own, others), own.share))


def _last(stake: Stake, id_: StakeId) -> Stake:
    """What counts of a stake once its server has ended."""
    used = stake.used if id_.kind in WINDOWS else 0
    return Stake(used, used)


def _changed(before: Mapping[StakeId, Stake], now: Mapping[StakeId, Stake]) -> dict[StakeId, Stake]:
    return {id_: stake for id_, stake in now.items() if before.get(id_) != stake}
