"""Receives the server's spans over OTLP and compares them with the client's records.

Accepts protobuf over HTTP, and keeps only the compared fields of each call's span.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from loadtest.errors import OptionsClash
from loadtest.judge.tally import kind_of
from loadtest.records import Agreement, Disagreement, Record

WAIT_SECONDS = 10.0  # exporters send batches, by default every five seconds
_PATH = "/v1/traces"
_PAUSE_SECONDS = 0.05
_MAX_BYTES = 64 * 1024 * 1024


class CallSpan(msgspec.Struct, frozen=True):
    """The compared fields of a call's span."""

    label: str  # NAME@VERSION or base
    model: str  # gen_ai.response.model, equal to the body's `model`
    output_tokens: int
    error: str  # error.type; empty for a successful call


class SpanReceiver:
    """Listens on 127.0.0.1 within an `async with` block.

    Raises:
        OptionsClash: the port is not available.
    """

    def __init__(self, port: int = 0) -> None:  # 0: a free one
        self.spans: dict[str, list[CallSpan]] = defaultdict(list)  # by trace id
        app = web.Application(client_max_size=_MAX_BYTES)
        app.router.add_post(_PATH, self._take)
        self._runner = web.AppRunner(app, access_log=None)
        self._port = port

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make a server send its spans here."""
        return {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{self._port}{_PATH}",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        }

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OptionsClash(f"--spans {self._port}: {error.strerror}; give another") from None
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    async def wait_for(self, trace_ids: Iterable[str], seconds: float = WAIT_SECONDS) -> None:
        """Return once every one of these calls has a span, or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        missing = set(trace_ids)
        while missing := missing - self.spans.keys():
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _take(self, request: web.Request) -> web.Response:
        try:
            # aiohttp has decompressed the body.
            sent = ExportTraceServiceRequest.FromString(await request.read())
        except DecodeError:
            raise web.HTTPBadRequest(text="not an ExportTraceServiceRequest") from None
        for span in _server_spans(sent):
            self.spans[span.trace_id.hex()].append(_read(span))
        return web.Response(content_type="application/x-protobuf")


def _server_spans(sent: ExportTraceServiceRequest) -> Iterator[Span]:
    """The spans of whole calls, without their child spans."""
    for resource in sent.resource_spans:
        for scope in resource.scope_spans:
            yield from (span for span in scope.spans if span.kind == Span.SPAN_KIND_SERVER)


def _read(span: Span) -> CallSpan:
    attributes = {pair.key: _plain(pair.value) for pair in span.attributes}
    parts = (attributes.get("lorry.adapter.name"), attributes.get("lorry.adapter.version"))
    return CallSpan(
        label="@".join(str(part) for part in parts if part is not None),
        model=str(attributes.get("gen_ai.response.model", "")),
        output_tokens=int(attributes.get("gen_ai.usage.output_tokens", 0)),
        error=str(attributes.get("error.type", "")),
    )


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


def spans_agree(records: Sequence[Record], spans: Mapping[str, Sequence[CallSpan]]) -> Agreement:
    """Each answered call must have exactly one span, with the same values as its answer.

    A disagreement counts calls: all of them, and those with a correct span. Failed calls without a
    trace id are left out.
    """
    traced = [record for record in records if record.trace_id or record.outcome != "failed"]
    calls: Counter[str] = Counter(_name(record) for record in traced)
    faults = Counter(
        (fault, _name(record))
        for record in traced
        if (fault := _find_fault(record, spans.get(record.trace_id, ())))
    )
    return Agreement(
        compared=len(traced),
        disagreements=tuple(
            Disagreement(what=f"{fault}: {name}", client=calls[name], server=calls[name] - count)
            for (fault, name), count in sorted(faults.items())
        ),
        left_out=_left_out(len(records) - len(traced)),
    )


def _left_out(untraced: int) -> tuple[str, ...]:
    return (f"spans: {untraced} failed calls without a trace id",) if untraced else ()


def _name(record: Record) -> str:
    return record.served or record.model


def _find_fault(record: Record, spans: Sequence[CallSpan]) -> str:
    if not record.trace_id:
        return "spans, a trace named in the answer"
    if len(spans) != 1:
        return "spans, one for each call"
    (span,) = spans
    if span.label != record.served or record.answered not in ("", span.model):
        return "spans, the adapter"
    if not _has_tokens(record, span.output_tokens):
        return "spans, output tokens"
    # A call that the client left, or that broke, may have ended either way.
    ended = kind_of(record)
    if bool(span.error) != (ended != "ok") and ended not in ("hung_up", "unclear"):
        return "spans, how the call ended"
    return ""


def _has_tokens(record: Record, counted: int) -> bool:
    """Whether the counts agree; the client saw only part of a call that ended early."""
    if record.outcome == "ok":
        return counted == record.output_tokens
    return counted >= record.output_tokens
