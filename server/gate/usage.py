"""What calls have used, by hour, key, adapter and version, until it is written into the catalog."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from adapters.catalog.usage import OTHER_SUMS, SUM_SIGN, Amounts, UsageId
from server.call import Call

MOST_SUMS = 64  # combinations of adapters that a key has rows for in an hour; weights do not count


class UsageCounts:
    """This server's totals; those of hours that are over go once they are written."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._totals: dict[UsageId, Amounts] = {}
        self._new: set[UsageId] = set()
        self._sums: set[UsageId] = set()  # those of them that are of sums

    @property
    def has_new(self) -> bool:
        """Whether some is not written yet."""
        return bool(self._new)

    def record(self, call: Call) -> None:
        """Count a call that has ended: in the hour of its end, whole."""
        if call.key is None and not call.resolved:
            return
        version = call.version
        id_ = UsageId(
            self._hour(),
            "" if call.key is None else call.key.name,
            SUM_SIGN.join(call.adapters),
            0 if version is None else version.version,
        )
        id_ = self._bounded(id_)
        self._totals.setdefault(id_, Amounts()).add(
            Amounts(
                calls=1,
                failed=int(call.outcome != "ok"),
                prompt_tokens=call.prompt_tokens,
                generation_tokens=call.generation_tokens,
                cached_prompt_tokens=call.cached_tokens,
                engine_seconds=call.engine_seconds,
            )
        )
        self._new.add(id_)

    def _bounded(self, id_: UsageId) -> UsageId:
        """The same, or that of all other sums, where a key has called many combinations."""
        if SUM_SIGN not in id_.adapter or id_ in self._totals:
            return id_
        same = (each.hour == id_.hour and each.key == id_.key for each in self._sums)
        if sum(same) >= MOST_SUMS:
            return id_._replace(adapter=OTHER_SUMS)
        self._sums.add(id_)
        return id_

    def take_new(self) -> dict[UsageId, Amounts]:
        """The totals that have grown since they were taken last."""
        taken = {id_: replace(self._totals[id_]) for id_ in self._new}
        self._new.clear()
        hour = self._hour()
        for id_ in [each for each in self._totals if each.hour < hour and each not in taken]:
            del self._totals[id_]
            self._sums.discard(id_)
        return taken

    def put_back(self, ids: Iterable[UsageId]) -> None:
        """What was taken could not be written."""
        self._new.update(ids)

    def _hour(self) -> datetime:
        return datetime.fromtimestamp(self._wall() // 3600 * 3600, UTC)
