"""The progress line of a phase. Independent of processes."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadtest.records import Record
from loadtest.statistics import percentile

_LIVE_EVERY = 0.5  # seconds between updates on a terminal
_PLAIN_EVERY = 10.0  # seconds between lines elsewhere
_WINDOW = 5.0  # seconds of a rate
_RECENT = 1000  # calls of the percentile


class Tick(NamedTuple):
    """The state of a phase."""

    seconds: float  # into the phase
    sent: int  # calls of the phase
    in_flight: int

    @property
    def ended(self) -> int:
        return self.sent - self.in_flight


class Progress:
    """A context manager; updates one line on a terminal, prints a line every 10 s elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._every = _LIVE_EVERY if console.is_terminal else _PLAIN_EVERY
        self.begin("", 0)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def begin(self, phase: str, seconds: float) -> None:
        """Start a new phase."""
        self._phase = phase
        self._seconds = seconds
        self._shown = 0.0  # seconds into the phase
        self._ticks: deque[Tick] = deque([Tick(0, 0, 0)])
        self._failed = 0
        self._ttfts: deque[float] = deque(maxlen=_RECENT)

    def record(self, record: Record) -> None:
        self._failed += record.outcome == "failed"
        if record.streamed and record.ttft is not None:
            self._ttfts.append(record.ttft)

    def tick(self, tick: Tick) -> None:
        self._ticks.append(tick)
        while len(self._ticks) > 2 and self._ticks[1].seconds <= tick.seconds - _WINDOW:
            self._ticks.popleft()
        if tick.seconds >= self._shown + self._every:
            self._shown = tick.seconds
            self._show()

    def line(self) -> str:
        now = self._ticks[-1]
        done = min(now.seconds, self._seconds)
        parts = [
            f"{self._phase} {done:.0f}/{self._seconds:.0f} s",
            f"sent {self._rate('sent'):.1f}/s ended {self._rate('ended'):.1f}/s",
            f"in flight {now.in_flight}",
            f"errors {self._failed}",
        ]
        if self._ttfts:
            parts.append(f"p99 TTFT {1000 * percentile(sorted(self._ttfts), 0.99):.0f} ms")
        return " · ".join(parts)

    def _rate(self, what: str) -> float:
        """Recent calls per second."""
        first, last = self._ticks[0], self._ticks[-1]
        seconds = last.seconds - first.seconds
        counted: float = getattr(last, what) - getattr(first, what)
        return counted / seconds if seconds > 0 else 0.0

    def _show(self) -> None:
        text = Text(self.line(), no_wrap=True, overflow="ellipsis")
        if self._live.is_started:
            self._live.update(text, refresh=True)
        else:
            self._console.print(text, soft_wrap=True)
