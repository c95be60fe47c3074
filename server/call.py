"""One HTTP call and everything that will be said of it.

A `Call` is filled while the call runs (by the middleware, residency and the engine) and written
out once, at its end (server/telemetry/recorder.py): response headers, metrics, span and log line
come from this one object, so they can't disagree. Knows nothing of HTTP frameworks or of vLLM.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from opentelemetry.trace import Span

from adapters.catalog.versions import AdapterVersion
from server.telemetry.content import Content

Outcome = Literal["ok", "client_error", "rejected", "aborted", "error"]

BASE = "base"  # what adapter labels say of a call to the base model
UNRESOLVED = "_unresolved"  # the call ended before it named a model that exists
_LONGEST_ID = 128
MAX_RECORDED_SEQUENCES = 16  # of one call, with spans and finish reasons of their own
_SEQUENCE_NUMBER = re.compile(r"[-_]\d{1,6}$")


@dataclass(slots=True)
class Lease:
    """What the engine knows a resident version by; shared by the calls that hold it."""

    engine_name: str  # LoRARequest.lora_name: unique per version and load
    request: Any  # vLLM's LoRARequest, opaque here
    repaired_values: int = 0  # not finite or far too large, since it was loaded: it is broken


class SequenceStats(Protocol):
    """The engine's own clock and counts: vllm.v1.metrics.stats.RequestStateStats.

    The `_ts` fields are seconds of CLOCK_MONOTONIC, 0.0 until they happened.
    """

    num_generation_tokens: int
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


@dataclass(slots=True)
class Sequence:
    """One prompt being answered; a call has several with n > 1 or a list of prompts."""

    engine_request_id: str  # the response's id, followed by -N or _N where there are several
    prompt_tokens: int
    stats: SequenceStats
    shares_prompt: bool = False  # a further answer (n > 1) to a prompt already counted
    cached_tokens: int = 0
    finish_reason: str | None = None
    handed_in: float = field(default_factory=time.monotonic)

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """What the engine has done with it: name, start and end on the engine's clock."""
        stats = self.stats
        times = (stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts)
        for name, start, end in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            if 0.0 < start <= end and (name != "decode" or stats.num_generation_tokens > 1):
                yield name, start, end


@dataclass(slots=True)
class Call:
    request_id: str  # the caller's own, when it sent a fit one
    engine_id: str  # ours: unique, what the engine and response ids carry
    endpoint: str
    operation: str
    base: str
    span: Span
    started: float = field(default_factory=time.monotonic)
    requested_model: str | None = None
    stream: bool = False
    version: AdapterVersion | None = None  # None: the base, once `resolved`
    resolved: bool = False  # the name that was asked for means something
    lease: Lease | None = None
    load_started: float | None = None  # monotonic; set when this call waited for a load
    load_ended: float | None = None
    status: int = 0
    response_complete: bool = False
    disconnected: bool = False
    error_code: str | None = None
    engine_error: str | None = None
    late_status: int = 0  # of an error in a stream, after its 200
    repaired_values: int = 0  # those of its lease when the engine told of them
    ended: float | None = None
    content: Content | None = None  # its texts, where they are to be told
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def adapter_label(self) -> str:
        if self.version is not None:
            return self.version.name
        return BASE if self.resolved else UNRESOLVED

    @property
    def account(self) -> str:
        """What its metrics are counted under (server/telemetry/ledger.py)."""
        return self.version.label if self.version is not None else self.adapter_label

    @property
    def response_model(self) -> str | None:
        """The name the answer carries in `model`."""
        if self.version is not None:
            return self.version.label
        return self.base if self.resolved else None

    @property
    def response_id(self) -> str | None:
        """The `id` of the answer, once the engine has taken the call."""
        if not self.sequences:
            return None
        return _SEQUENCE_NUMBER.sub("", self.sequences[0].engine_request_id)[:_LONGEST_ID]

    @property
    def outcome(self) -> Outcome:
        if self.disconnected and not self.response_complete:
            return "aborted"
        if self.engine_error is not None or self.status == 0 or "error" in self.finish_reasons:
            return "error"
        if "abort" in self.finish_reasons:
            return "aborted"  # by the engine: it was told to stop
        status = self.late_status or self.status
        if status in (401, 403, 429, 503):
            return "rejected"
        if status >= 500:
            return "error"
        return "client_error" if status >= 400 else "ok"

    @property
    def duration(self) -> float:
        """Seconds from the first byte in to the last byte out."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the call's arrival to the engine's first token, if there was one."""
        first = [s.stats.first_token_ts for s in self.sequences if s.stats.first_token_ts]
        return max(min(first) - self.started, 0.0) if first else None

    @property
    def prompt_tokens(self) -> int:
        return sum(s.prompt_tokens for s in self.sequences if not s.shares_prompt)

    @property
    def generation_tokens(self) -> int:
        return sum(s.stats.num_generation_tokens for s in self.sequences)

    @property
    def cached_tokens(self) -> int:
        return sum(s.cached_tokens for s in self.sequences if not s.shares_prompt)

    @property
    def finish_reasons(self) -> list[str]:
        return [s.finish_reason for s in self.sequences if s.finish_reason]


class Observer(Protocol):
    """Hears of what the engine does for a call while it runs; must not raise."""

    def token_made(self, call: Call, gap: float) -> None: ...

    def step_made(self, running: int) -> None: ...


current_call: ContextVar[Call | None] = ContextVar("lorry_current_call", default=None)
