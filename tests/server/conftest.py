"""A server around the stand-ins: everything but vLLM is the product's own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from standin_server import BASE, House, StandInApp, StandInEngine, publish

from adapters.catalog import Catalog
from server.app import create_app
from server.attribution import Recorder
from server.lifecycle import Lifecycle, Phase
from server.metrics import Metrics
from server.middleware import EngineSlot
from server.naming import ModelNames
from server.residency import Residency
from server.tracing import Tracing


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), BASE)


@pytest.fixture
async def house(tmp_path: Path, metrics: Metrics) -> AsyncIterator[House]:
    with Catalog.open(tmp_path / "store") as catalog:
        for name in ("red", "green", "blue"):
            publish(catalog, name)
        lifecycle, engine, inner, slot = Lifecycle(), StandInEngine(), StandInApp(), EngineSlot()
        residency = Residency(
            engine,
            capacity=2,
            max_rank=16,
            path_of=lambda digest: tmp_path / digest,
            check=lambda folder: None,
            metrics=metrics,
            wait_seconds=1.0,
        )
        slot.put(inner, residency)
        lifecycle.advance(Phase.READY)
        spans = InMemorySpanExporter()
        tracing = Tracing(spans)
        app = create_app(
            lifecycle=lifecycle,
            names=ModelNames(BASE, catalog),
            recorder=Recorder(metrics, tracing),
            engine=slot,
            max_body_bytes=50_000,
            started_at=1,
        )
        log: list[dict[str, Any]] = []
        handler = logging.Handler()
        handler.emit = lambda record: log.append(record.call)  # type: ignore[attr-defined]
        logger = logging.getLogger("lorry.calls")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://lorry") as client:
            yield House(
                client, app, inner, engine, lifecycle, metrics, spans, catalog, tracing, log
            )
        logger.removeHandler(handler)
        tracing.close()
