"""The plan: every call of a phase, made from the seed before the first one is sent.

A call is a function of seed, phase, stream and number alone, so that processes share a plan without
talking, and both sides of a comparison are asked the same.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import msgspec

from loadtest.errors import ScenarioInvalid
from loadtest.plan import draws
from loadtest.plan.scenario import Phase, Scenario
from loadtest.plan.trace import Line, read_trace
from loadtest.plan.traffic import Arrival, Closed, Slug, Stream, Trace

# Part of the digest: to be raised whenever the same scenario comes to mean other calls.
_EDITION = 2


class Call(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One call to be made."""

    phase: Slug
    stream: Slug
    number: int
    at: float | None  # seconds into the phase; None in a closed loop, where a turn decides
    adapter: int | None  # its number in the run; None is the base
    endpoint: str  # completions or chat
    prompt_tokens: int
    output_tokens: int
    streamed: bool
    structured: bool
    hang_up_after: int | None  # pieces with content, after which the client goes away


# ---- the calls of a phase


def plan_phase(scenario: Scenario, phase: Phase) -> list[Call]:
    """All calls of the phase's open loops, in the order of their times.

    Raises:
        ScenarioInvalid: more than MOST_CALLS calls, or a trace that can't be read.
    """
    lines: list[tuple[float, str, int, Line]] = []
    for stream, arrival in phase.traffic.items():
        schedule = _schedule(scenario, phase, stream, arrival)
        lines += ((line.at, stream, number, line) for number, line in enumerate(schedule))
        if len(lines) > draws.MOST_CALLS:
            raise ScenarioInvalid(
                f"phase {phase.name} plans more than {draws.MOST_CALLS:,} calls: "
                "make it shorter, or lower its rates"
            )
    lines.sort(key=lambda entry: entry[:3])
    return [_make_call(scenario, phase, *entry[1:]) for entry in lines]


def closed_call(scenario: Scenario, phase: Phase, stream: str, number: int) -> Call:
    """The `number`-th call of a closed loop, from 0, whichever caller's turn it is."""
    return _make_call(scenario, phase, stream, number, None)


def reseeded(scenario: Scenario, round: int) -> Scenario:
    """The scenario for another round: other draws of the same traffic. Round 0 is the scenario."""
    if round == 0:
        return scenario
    seed = random.Random(f"{scenario.seed}/round/{round}").getrandbits(48)
    return scenario.model_copy(update={"seed": seed})


def _schedule(scenario: Scenario, phase: Phase, stream: str, arrival: Arrival) -> list[Line]:
    match arrival:
        case Closed():
            return []
        case Trace():
            adapters = scenario.streams[stream].adapters
            return read_trace(arrival, phase.seconds, adapters.count if adapters else 0)
        case _:
            dice = random.Random(f"{scenario.seed}/{phase.name}/{stream}/arrivals")
            return [Line(at=at) for at in draws.arrival_times(arrival, phase.seconds, dice)]


# ---- one call


def _make_call(
    scenario: Scenario, phase: Phase, stream: str, number: int, line: Line | None
) -> Call:
    # Whether or not it is used, each value is drawn: other shares leave lengths and adapters alone.
    dice = random.Random(f"{scenario.seed}/{phase.name}/{stream}/{number}")
    asked = scenario.streams[stream]
    streamed = dice.random() < asked.streaming
    structured = dice.random() < asked.structured
    hangs_up = dice.random() < asked.hang_up
    patience = dice.random()
    to_base = dice.random() < asked.base_share
    prompt_tokens = draws.draw_length(asked.prompt_tokens, dice)
    output_tokens = draws.draw_length(asked.output_tokens, dice)
    if line is not None:
        prompt_tokens = line.prompt_tokens or prompt_tokens
        output_tokens = line.output_tokens or output_tokens
    return Call(
        phase=phase.name,
        stream=stream,
        number=number,
        at=line.at if line else None,
        adapter=_choose_adapter(asked, to_base, number, line, dice),
        endpoint=asked.endpoint,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        streamed=streamed,
        structured=structured,
        hang_up_after=_pieces(patience, output_tokens) if streamed and hangs_up else None,
    )


def _choose_adapter(
    asked: Stream, to_base: bool, number: int, line: Line | None, dice: random.Random
) -> int | None:
    adapters = asked.adapters
    if adapters is None:
        return None
    if line is not None and line.adapter is not None:
        return adapters.first + line.adapter
    if to_base:
        return None
    return adapters.first + draws.choose_adapter(adapters.popularity, adapters.count, number, dice)


def _pieces(patience: float, output_tokens: int) -> int | None:
    """1 to output_tokens - 1; None for an answer that is over with its first piece."""
    return 1 + int(patience * (output_tokens - 1)) if output_tokens > 1 else None


# ---- what makes two plans the same


def digest(scenario: Scenario) -> str:
    """SHA-256 in hex of all that decides which calls are made; names of trace files do not count.

    Raises:
        ScenarioInvalid: a trace that can't be read.
    """
    shown = scenario.model_dump(mode="json", include={"seed", "adapters", "vocabulary", "streams"})
    shown["edition"] = _EDITION
    shown["phases"] = [_show_phase(phase) for phase in scenario.phases]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def _show_phase(phase: Phase) -> dict[str, Any]:
    traffic = {stream: _show_arrival(arrival) for stream, arrival in phase.traffic.items()}
    return {"name": phase.name, "seconds": phase.seconds, "traffic": traffic}


def _show_arrival(arrival: Arrival) -> dict[str, Any]:
    shown = arrival.model_dump(mode="json")
    if isinstance(arrival, Trace):
        shown["file"] = _digest_trace(arrival)
    return shown


def _digest_trace(trace: Trace) -> str:
    try:
        with trace.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ScenarioInvalid(f"can't read the trace {trace.file}: {error.strerror}") from None
