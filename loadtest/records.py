"""The results of a run: one record per call, phase times, actions, disagreements.

All times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import msgspec

# hung_up: the client disconnected as planned. failed: `reason` is the cause.
Outcome = Literal["ok", "hung_up", "failed"]
KEPT_TEXT = 256  # characters kept of an answer


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One call, as the client saw it."""

    phase: str
    stream: str
    number: int  # index in the stream's plan for the phase
    model: str  # the requested one
    is_base: bool
    streamed: bool
    structured: bool = False  # a JSON schema constrains its text
    # When it was due (open loop: by the plan; closed loop: when its caller was free).
    scheduled: float
    sent: float
    first: float | None = None  # first piece of the answer with content
    last: float | None = None  # last piece with content
    ended: float
    gaps: list[float] = []  # seconds between pieces with content, in order
    outcome: Outcome
    reason: str = ""  # a stable code: http_503_adapters_busy, timeout, connect, stream_broken, ...
    status: int = 0  # HTTP status; 0 without an answer
    prompt_tokens: int = 0  # as the server counted
    output_tokens: int = 0  # as the server counted; number of pieces if it reported no count
    answered: str = ""  # the body's `model`
    served: str = ""  # the header x-lorry-adapter; empty for other servers
    digest: str = ""  # the header x-lorry-adapter-digest
    trace_id: str = ""  # of the header traceresponse
    text: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from when the call was due: waiting in the client counts."""
        return None if self.first is None else self.first - self.scheduled

    @property
    def duration(self) -> float:
        return self.ended - self.scheduled

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first."""
        if self.first is None or self.last is None or self.output_tokens < 2 or not self.streamed:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)

    @property
    def has_begun(self) -> bool:
        """Whether a part of an answer arrived: a status or an error is none."""
        return self.first is not None or bool(self.answered)

    @property
    def token_times(self) -> list[float]:
        """Arrival times of its output tokens, an equal part of them at each."""
        if self.outcome == "failed" or not self.output_tokens:
            return []
        if not self.streamed or self.first is None:
            return [self.ended]
        return list(accumulate(self.gaps, initial=self.first))

    @property
    def lateness(self) -> float:
        """Seconds by which the client sent the call late."""
        return self.sent - self.scheduled


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """When a phase ran, on the records' clock."""

    phase: str
    measured: bool
    outage: bool
    began: float
    seconds: float  # as planned; calls may end later
    ended: float  # end of its last call
    planned: dict[str, int | None]  # calls of each stream; None for a closed loop


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """An answer from another adapter or version than requested."""

    phase: str
    stream: str
    number: int
    model: str
    message: str


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A count on which client and server differ."""

    what: str  # metrics or spans, and the counted thing
    client: float
    server: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of the counts of client and server; `left_out` gives the omissions and why."""

    compared: int = 0
    disagreements: tuple[Disagreement, ...] = ()
    left_out: tuple[str, ...] = ()


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An action that was performed."""

    phase: str
    what: str
    began: float
    ended: float
    failure: str = ""
    adapter: str = ""  # the adapter it changed
    # The version that the adapter's bare name means from then on, or may mean after a failure;
    # 0: unknown; None: unchanged.
    stable: int | None = None


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The load generator's own lag and load, which decide whether the figures can be trusted."""

    processes: int
    lag: list[float]  # samples of the seconds by which its event loops were late
    cpu_seconds: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario against one server."""

    scenario: str
    about: str
    seed: int
    plan: str  # digest: runs with the same digest made the same calls
    target: str  # description of the server
    date: str
    windows: list[Window]
    records: list[Record]
    client: Client
    actions: list[Done] = []
    wrong: list[Wrong] = []
    judged: int = 0  # answers whose marker was checked
    agreement: Agreement = Agreement()
