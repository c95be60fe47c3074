"""What a run leaves: when its phases were, what each call saw, and what was found to disagree."""

from __future__ import annotations

import msgspec

from loadtest.records import Record


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
