"""One HTTP call and everything recorded about it.

The middleware, the residency and the engine fill a `Call` while it runs, and
server/telemetry/recorder.py writes it out once, at its end. Response headers, metrics, span and log
line come from this one object, so they can't disagree. Knows nothing about HTTP frameworks or vLLM.
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
from adapters.keys import Key
from adapters.sums import parts_of
from server.content import Content
from server.errors import RequestError

Outcome = Literal["ok", "client_error", "rejected", "aborted", "error"]

BASE = "base"  # the adapter label of a call to the base model
UNRESOLVED = "_unresolved"  # the adapter label of a call without a valid `model`
_MAX_ID_CHARACTERS = 128
MAX_RECORDED_SEQUENCES = 16  # of one call, with spans and finish reasons of their own
_SEQUENCE_NUMBER = re.compile(r"[-_]\d{1,6}$")


@dataclass(slots=True)
class Lease:
    """The identity of a resident version in the engine; shared by the calls that use it."""

    engine_name: str  # LoRARequest.lora_name: unique per version and load
    request: Any  # vLLM's LoRARequest, opaque here
    repaired_values: int = 0  # computed since the load, not finite or far too large: it is broken
    lost: bool = False  # the engine that held it has ended


class Allowance(Protocol):
    """What a call has taken of the limits that it meets (server/gate/quotas.py)."""

    async def reserve(self, work: Any) -> None:
        """Reserve the tokens of a request to the engine (`Work`); raises RequestError."""

    def headers(self) -> dict[str, str]:
        """How much is left, for the answer."""


class SequenceStats(Protocol):
    """The engine's times and counts: vllm.v1.metrics.stats.RequestStateStats.

    The `_ts` fields are seconds of CLOCK_MONOTONIC, 0.0 until the event.
    """

    num_generation_tokens: int
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


@dataclass(slots=True)
class Sequence:
    """One answer to one prompt; a call has several with n > 1 or a list of prompts."""

    engine_request_id: str  # the response's id, followed by -N or _N where there are several
    prompt_tokens: int
    stats: SequenceStats
    shares_prompt: bool = False  # a further answer (n > 1) to a prompt already counted
    cached_tokens: int = 0
    finish_reason: str | None = None
    handed_in: float = field(default_factory=time.monotonic)
    queued: float | None = None  # when it began to wait for its turn to enter the engine

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """Its phases so far: name, start and end in seconds of CLOCK_MONOTONIC."""
        stats = self.stats
        times = (
            self.queued or stats.queued_ts,
            stats.scheduled_ts,
            stats.first_token_ts,
            stats.last_token_ts,
        )
        for name, start, end in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            if 0.0 < start <= end and (name != "decode" or stats.num_generation_tokens > 1):
                yield name, start, end


@dataclass(slots=True)
class Call:
    request_id: str  # the caller's own, if it sent a valid one
    engine_id: str  # ours, unique; the engine's and response ids contain it
    endpoint: str
    operation: str
    base: str
    span: Span
    replica: str = ""  # the name of this server, where there are several
    key: Key | None = None  # whose call it is, where keys are in force
    caller: str = ""  # whose turn it is, where callers take turns: the address it comes from
    started: float = field(default_factory=time.monotonic)
    allowance: Allowance | None = None  # None: it meets no limit
    digest: str = ""  # SHA-256 of the body
    requested_model: str | None = None
    stream: bool = False
    version: AdapterVersion | None = None  # None: the base, once `resolved`
    resolved: bool = False  # the requested model exists
    lease: Lease | None = None
    user: str = ""  # the body's, if it names one
    waiting: int = 0  # its requests that wait for their turn to enter the engine
    queued: float | None = None  # monotonic; when its latest request began to wait
    load_started: float | None = None  # monotonic; set if this call waited for a load
    load_ended: float | None = None
    status: int = 0
    response_complete: bool = False
    disconnected: bool = False  # the caller hung up, or its deadline has passed
    error_code: str | None = None
    refusal: RequestError | None = None  # by our code below vLLM's, which hides it
    engine_error: str | None = None
    fault: BaseException | str | None = None  # what an answer of 500 hides, for the log
    late_status: int = 0  # of an error in a stream, after its 200
    repaired_values: int = 0  # of its adapter, as the engine last reported them
    ended: float | None = None
    engine_request: Any = None  # vLLM's, if its body was read off the loop; or why there is none
    chat_form: Any = None  # its adapter's own (server/engine/chat_forms.py), in a chat
    content: Content | None = None  # its texts, if they are captured
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def adapter_label(self) -> str:
        if self.version is not None:
            return self.version.name
        return BASE if self.resolved else UNRESOLVED

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that limits and usage are of: those of a sum's parts, in order, or its own."""
        parts = parts_of(self.version)
        return tuple(sorted({part.version.name for part in parts})) or (self.adapter_label,)

    @property
    def account(self) -> str:
        """The key of its account in server/telemetry/ledger.py."""
        return self.version.label if self.version is not None else self.adapter_label

    @property
    def _turns(self) -> str:
        """What a caller's turns are for: its account; a sum's are those of its lightest part.

        Or whoever draws weights at random would have a turn for each.
        """
        parts = parts_of(self.version)
        lightest = min(parts, key=lambda part: part.version.weight, default=None)
        return self.account if lightest is None else lightest.version.label

    @property
    def flow(self) -> str:
        """Whose turn it is, where calls take turns: one caller's use of one adapter."""
        caller = f"key {self.key.name}" if self.key else self.caller
        return f"{caller} {self._turns}"

    @property
    def queue_flow(self) -> str:
        """The flow in the queue for the engine: that of a key, or of an address, behind which
        callers differ by `user`. A key is one caller, whatever users it names: `queue_member`."""
        if self.key is not None:
            return f"key {self.key.name} {self._turns}"
        # Told apart: nobody joins another's flow by sending its address as `user`.
        caller = f"user {self.user[:_MAX_ID_CHARACTERS]}" if self.user else f"at {self.caller}"
        return f"{caller} {self._turns}"

    @property
    def queue_member(self) -> str:
        """Who takes turns with whom inside the flow: the users of one key."""
        return self.user[:_MAX_ID_CHARACTERS] if self.key else ""

    @property
    def weight(self) -> float:
        """Its share of the engine beside other flows."""
        of_adapter = 1.0 if self.version is None else self.version.weight
        return of_adapter * (self.key.weight if self.key else 1.0)

    @property
    def response_model(self) -> str | None:
        """The `model` of the answer."""
        if self.version is not None:
            return self.version.label
        return self.base if self.resolved else None

    @property
    def response_id(self) -> str | None:
        """The `id` of the answer, once the engine has accepted the call."""
        if not self.sequences:
            return None
        return _SEQUENCE_NUMBER.sub("", self.sequences[0].engine_request_id)[:_MAX_ID_CHARACTERS]

    @property
    def outcome(self) -> Outcome:
        status = self.late_status or self.status
        if status in (401, 504):
            return "rejected"  # its key lapsed, or at the deadline that its caller set
        if self.disconnected and not self.response_complete:
            return "aborted"
        if self.engine_error is not None or self.status == 0 or "error" in self.finish_reasons:
            return "error"
        if "abort" in self.finish_reasons:
            return "aborted"  # by the engine, while it stops
        if status in (403, 429, 503):
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
    def engine_seconds(self) -> float:
        """The sum over its sequences, from the first step for one to its last token."""
        times = ((s.stats.scheduled_ts, s.stats.last_token_ts) for s in self.sequences)
        return sum(max(last - first, 0.0) for first, last in times if first and last)

    @property
    def finish_reasons(self) -> list[str]:
        return [s.finish_reason for s in self.sequences if s.finish_reason]


class Observer(Protocol):
    """Receives what the engine does while calls run (server/telemetry/metrics.py)."""

    def token_made(self, call: Call, gap: float) -> None: ...

    def step_made(self, running: int) -> None: ...


current_call: ContextVar[Call | None] = ContextVar("lorry_current_call", default=None)
