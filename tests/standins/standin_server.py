"""A stand-in engine and a server around it: everything but vLLM is the product's own."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import Receive, Scope, Send

from adapters.catalog import AdapterVersion, Catalog
from adapters.checkpoint import Checkpoint
from server.call import Sequence, current_call
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.tracing import Tracing

BASE = "tiny"


@dataclass
class Stats:
    """What vLLM's RequestStateStats holds, as far as a call reads it."""

    num_generation_tokens: int = 0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0


@dataclass
class StandInEngine:
    """Keeps what it was told to load; refuses or hangs when told to."""

    loaded: dict[int, str] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    most_loaded: int = 0
    failures: list[Exception] = field(default_factory=list)
    gate: asyncio.Event | None = None
    running: set[str] = field(default_factory=set)

    def make_request(self, engine_name: str, integer_id: int, path: Path) -> Any:
        return (engine_name, integer_id, path)

    async def add_adapter(self, request: Any, within: float) -> None:
        name, integer_id, _ = request
        self.asked.append(integer_id)
        self.names.append(name)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.loaded[integer_id] = name
        self.most_loaded = max(self.most_loaded, len(self.loaded))

    async def remove_adapter(self, integer_id: int, within: float) -> None:
        await asyncio.sleep(0)
        name = self.loaded.pop(integer_id, None)
        assert name not in self.running, f"{name} was removed while it ran"
        self.removed.append(integer_id)

    def is_using(self, engine_name: str) -> bool:
        return engine_name in self.running


class StandInApp:
    """Answers like vLLM's app: one sequence per call, or whatever `answer` says."""

    def __init__(self) -> None:
        self.seen: list[tuple[Scope, bytes]] = []
        self.answer: Callable[[Scope, Receive, Send], Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        self.seen.append((scope, body))
        if self.answer is not None:
            await self.answer(scope, receive, send)
            return
        call = current_call.get()
        assert call is not None
        stats = Stats(num_generation_tokens=3, first_token_ts=call.started + 0.01)
        call.sequences.append(
            Sequence(
                f"chatcmpl-{call.engine_id}", prompt_tokens=5, stats=stats, finish_reason="stop"
            )
        )
        await send_json(send, 200, {"model": call.response_model})


async def send_json(send: Send, status: int, body: Any) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"inner")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


@dataclass
class House:
    """A whole server around the stand-ins."""

    client: httpx2.AsyncClient
    app: Any
    inner: StandInApp
    engine: StandInEngine
    lifecycle: Lifecycle
    metrics: Metrics
    spans: InMemorySpanExporter
    catalog: Catalog
    tracing: Tracing
    log: list[dict[str, Any]]

    async def chat(self, model: str = BASE, **kwargs: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return await self.client.post("/v1/chat/completions", json=body, **kwargs)

    def count(self, series: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(series, labels) or 0.0


def publish(catalog: Catalog, name: str, rank: int = 8, content: str = "") -> AdapterVersion:
    digest = "sha256:" + hashlib.sha256(f"{name}{content}".encode()).hexdigest()
    checkpoint = Checkpoint(
        rank=rank,
        alpha=2.0 * rank,
        target_modules=("q_proj",),
        base_name=BASE,
        size_bytes=1,
        tensor_count=2,
    )
    return catalog.publish(name=name, digest=digest, checkpoint=checkpoint, base=BASE, actor="test")
