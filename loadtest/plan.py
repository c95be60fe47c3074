"""The plan: every call of a phase, made from the seed before the first one is sent.

A call is a function of seed, phase, stream and number alone, so that processes share a plan without
talking, and both sides of a comparison are asked the same.
"""

from __future__ import annotations

import msgspec

from loadtest.traffic import Slug


class Call(msgspec.Struct, frozen=True, kw_only=True):
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
