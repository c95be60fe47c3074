"""What is kept of one call: everything that a report is made of.

All times are seconds of one clock, CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# hung_up: the client went away as planned. failed: `reason` says why.
Outcome = Literal["ok", "hung_up", "failed"]
KEPT_TEXT = 256  # characters of an answer that are kept


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One call, as its caller saw it."""

    phase: str
    stream: str
    number: int  # its place in the stream's plan for the phase
    model: str  # asked for
    is_base: bool
    streamed: bool
    structured: bool = False  # its text is its schema's
    # When it should have been sent (open loop: by the plan; closed loop: when its turn came).
    scheduled: float
    sent: float
    first: float | None = None  # the first piece of the answer that had content
    last: float | None = None  # the last one
    ended: float
    gaps: list[float] = []  # seconds between pieces with content, in order
    outcome: Outcome
    reason: str = ""  # a stable code: http_503_adapters_busy, timeout, connect, stream_broken, ...
    status: int = 0  # of HTTP; 0 when no answer came
    prompt_tokens: int = 0  # as the server counted
    output_tokens: int = 0  # as the server counted; where it did not, or was not waited for: pieces
    answered: str = ""  # the body's `model`
    served: str = ""  # the header x-lorry-adapter; empty for other servers
    digest: str = ""  # the header x-lorry-adapter-digest
    trace_id: str = ""  # of the header traceresponse
    text: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from when it should have been sent: waiting in the client counts."""
        return None if self.first is None else self.first - self.scheduled

    @property
    def duration(self) -> float:
        return self.ended - self.scheduled

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first one."""
        if self.first is None or self.last is None or self.output_tokens < 2 or not self.streamed:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)

    @property
    def lateness(self) -> float:
        """Seconds by which the client itself was late."""
        return self.sent - self.scheduled


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """When a phase was. Times are those of the records' clock."""

    phase: str
    measured: bool
    outage: bool
    began: float
    seconds: float  # as planned; calls may end later
    ended: float  # when its last call had ended
    planned: dict[str, int | None]  # calls of each stream; None for a closed loop


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of another adapter or version than was asked for."""

    phase: str
    stream: str
    number: int
    model: str
    message: str


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A count that client and server do not share."""

    what: str  # metrics or spans, and of what
    client: float
    server: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared of client and server; `left_out` says what was not, and why."""

    compared: int = 0
    disagreements: tuple[Disagreement, ...] = ()
    left_out: tuple[str, ...] = ()


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An action that was taken."""

    phase: str
    what: str
    began: float
    ended: float
    failure: str = ""
    adapter: str = ""  # whom it changed
    # The version that the adapter's bare name means from then on, or may mean where there is a
    # failure; 0: nobody knows which; None: as before.
    stable: int | None = None


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """How the load generator itself fared: whether the rest can be trusted."""

    processes: int
    lag: list[float]  # seconds by which its event loops were late, sampled
    cpu_seconds: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario against one server."""

    scenario: str
    about: str
    seed: int
    plan: str  # digest: two runs with the same one were asked the same
    target: str  # what was asked, in words
    date: str
    windows: list[Window]
    records: list[Record]
    client: Client
    actions: list[Done] = []
    wrong: list[Wrong] = []
    judged: int = 0  # answers whose marker was looked at
    agreement: Agreement = Agreement()
