"""The calls that are being answered now, and which of them wait.

Nothing here is counted up and down: it is looked at when it is asked for, so it can't leak.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from server.call import Call, Sequence
from server.telemetry.ledger import Account, Trace


@dataclass(slots=True)
class LiveCall:
    call: Call
    account: Account
    trace: Trace
    since: float = field(default_factory=time.monotonic)

    @property
    def waits_for_adapter(self) -> bool:
        """Its adapter is on its way in, or waits for a place."""
        return self.call.version is not None and self.call.lease is None


class LiveCalls:
    def __init__(self) -> None:
        self.running_sequences = 0  # that the engine has scheduled, as of its last step
        self.changes = 0  # how often a call began or ended
        self._calls: dict[str, LiveCall] = {}

    def begin(self, call: Call, account: Account, trace: Trace) -> None:
        self._calls[call.engine_id] = LiveCall(call, account, trace)
        self.changes += 1

    def get(self, call: Call) -> LiveCall | None:
        return self._calls.get(call.engine_id)

    def end(self, call: Call) -> LiveCall | None:
        live = self._calls.pop(call.engine_id, None)
        self.changes += live is not None
        return live

    def all(self) -> list[LiveCall]:
        return list(self._calls.values())

    def waiting(self) -> list[LiveCall]:
        """Those that wait for an adapter or in the engine's queue, the longest wait first."""
        scheduled = self._scheduled()
        return [
            live
            for live in self._calls.values()
            if live.waits_for_adapter
            or (
                live.call.sequences
                and not any(id(each) in scheduled for each in live.call.sequences)
            )
        ]

    def _scheduled(self) -> set[int]:
        """The sequences that the engine has begun, by `id`.

        It says so of each only with its first token; how many it has begun it says in every step.
        It begins them in order, but for those whose adapter finds no slot.
        """
        sequences = [each for live in self._calls.values() for each in live.call.sequences]
        told = [each for each in sequences if each.stats.scheduled_ts or each.finish_reason]
        running = sum(not each.finish_reason for each in told)
        untold = sorted(
            (each for each in sequences if not each.stats.scheduled_ts and not each.finish_reason),
            key=_handed_in,
        )
        begun = untold[: max(self.running_sequences - running, 0)]
        return {id(each) for each in (*told, *begun)}


def _handed_in(sequence: Sequence) -> float:
    return sequence.handed_in
