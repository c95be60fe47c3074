"""The plan: every call of a phase, drawn from the seed before the first call is sent.

A call is a function of seed, phase, stream and number alone: processes share a plan without
communicating, and all sides of a comparison get the same calls.
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

# Part of the digest: raise it whenever the same scenario yields other calls.
_EDITION = 3


class Call(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One planned call."""

    phase: Slug
    stream: Slug
    number: int
    at: float | None  # seconds into the phase; None in a closed loop
    adapter: int | None  # number in the run; None: the base
    endpoint: str  # completions or chat
    prompt_tokens: int
    output_tokens: int
    streamed: bool
    structured: bool
    hang_up_after: int | None  # pieces with content, after which the client disconnects


# ---- the calls of a phase


def plan_phase(scenario: Scenario, phase: Phase) -> list[Call]:
    """All calls of the phase's open loops, ordered by time.

    Raises:
        ScenarioInvalid: there are more than MOST_CALLS calls, or a trace can't be read.
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
    """The `number`-th call of a closed loop, from 0."""
    return _make_call(scenario, phase, stream, number, None)


def reseeded(scenario: Scenario, round: int) -> Scenario:
    """The scenario with another seed for each round; round 0 is the scenario itself."""
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
            rng = random.Random(f"{scenario.seed}/{phase.name}/{stream}/arrivals")
            return [Line(at=at) for at in draws.arrival_times(arrival, phase.seconds, rng)]


# ---- one call


def _make_call(
    scenario: Scenario, phase: Phase, stream: str, number: int, line: Line | None
) -> Call:
    # Every value is always drawn, so that changed shares leave lengths and adapters as they are.
    rng = random.Random(f"{scenario.seed}/{phase.name}/{stream}/{number}")
    spec = scenario.streams[stream]
    streamed = rng.random() < spec.streaming
    structured = rng.random() < spec.structured
    hangs_up = rng.random() < spec.hang_up
    patience = rng.random()
    to_base = rng.random() < spec.base_share
    prompt_tokens = draws.draw_length(spec.prompt_tokens, rng)
    output_tokens = draws.draw_length(spec.output_tokens, rng)
    if line is not None:
        prompt_tokens = line.prompt_tokens or prompt_tokens
        output_tokens = line.output_tokens or output_tokens
    return Call(
        phase=phase.name,
        stream=stream,
        number=number,
        at=line.at if line else None,
        adapter=_choose_adapter(spec, to_base, number, line, rng),
        endpoint=spec.endpoint,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        streamed=streamed,
        structured=structured,
        hang_up_after=_pieces(patience, output_tokens) if streamed and hangs_up else None,
    )


def _choose_adapter(
    spec: Stream, to_base: bool, number: int, line: Line | None, rng: random.Random
) -> int | None:
    adapters = spec.adapters
    if adapters is None:
        return None
    if line is not None and line.adapter is not None:
        return adapters.first + line.adapter
    if to_base:
        return None
    return adapters.first + draws.choose_adapter(adapters.popularity, adapters.count, number, rng)


def _pieces(patience: float, output_tokens: int) -> int | None:
    """1 to output_tokens - 1; None for an answer of one piece."""
    return 1 + int(patience * (output_tokens - 1)) if output_tokens > 1 else None


# ---- digest


def digest(scenario: Scenario) -> str:
    """SHA-256 in hex of everything that determines the calls, with traces by content.

    Raises:
        ScenarioInvalid: a trace can't be read.
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
