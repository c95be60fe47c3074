"""`lorry` with a switch: SIGUSR2 leaves out all that is recorded of calls, SIGUSR1 does not.

    python -m bench.telemetry_server serve MODEL ...

One process for both, as two would differ by more than what is measured (bench/telemetry.py). To be
switched only while no call runs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from opentelemetry.trace import INVALID_SPAN

_RECORDING: list[tuple[type, str, Callable[..., Any]]] = []  # what each method is when it is on


def switch_on(*_: object) -> None:
    for owner, name, method in _RECORDING:
        setattr(owner, name, method)


def switch_off(*_: object) -> None:
    """Raises nothing and imports nothing new: the engine runs by now."""
    from server.engine.outputs import AttributedOutputProcessor
    from server.telemetry.metrics import Metrics
    from server.telemetry.recorder import Recorder
    from server.telemetry.tracing import Tracing

    for owner, name in ((Recorder, "begin"), (Recorder, "record"), (Metrics, "is_busy")):
        _replace(owner, name, lambda *_: None)
    _replace(Tracing, "start", lambda *_: INVALID_SPAN)
    _replace(AttributedOutputProcessor, "_tie", lambda *_: None)
    stock = AttributedOutputProcessor.__mro__[1]
    for name in (
        "_update_stats_from_output",
        "_update_stats_from_finished",
        "update_scheduler_stats",
        "abort_requests",
    ):
        _replace(AttributedOutputProcessor, name, getattr(stock, name))


def _replace(owner: type, name: str, other: Callable[..., Any]) -> None:
    if not any(kept[:2] == (owner, name) for kept in _RECORDING):
        _RECORDING.append((owner, name, owner.__dict__[name]))
    setattr(owner, name, other)


def main() -> None:
    from lorry import main as lorry

    signal.signal(signal.SIGUSR1, switch_on)
    signal.signal(signal.SIGUSR2, switch_off)
    lorry()


if __name__ == "__main__":
    main()
