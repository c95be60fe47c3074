"""A server around the stand-ins: everything but vLLM is the product's own."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from residency_stage import Stage
from standin_server import (
    BASE,
    TOKEN,
    House,
    StandInApp,
    StandInEngine,
    publish,
    residency_of,
)

from adapters.catalog import Catalog
from server.admin.publishing import Publisher
from server.admin.router import create_router
from server.admin.shelf import Shelf
from server.app import create_app
from server.attribution import Recorder
from server.engine_slot import EngineSlot
from server.lifecycle import Lifecycle, Phase
from server.metrics import Metrics
from server.naming import ModelNames
from server.settings import Settings
from server.tracing import Tracing


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """For a test that lets `configure_logging` change the process's loggers."""
    loggers = [logging.getLogger(name) for name in ("lorry", "uvicorn", "opentelemetry")]
    kept = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    yield io.StringIO()
    for logger, handlers, propagate, level in kept:
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), BASE)


@pytest.fixture
async def house(tmp_path: Path, metrics: Metrics) -> AsyncIterator[House]:
    with Catalog.open(tmp_path / "store") as catalog:
        for name in ("red", "green", "blue"):
            publish(catalog, name)
        lifecycle, engine, inner, slot = Lifecycle(), StandInEngine(), StandInApp(), EngineSlot()
        residency = residency_of(engine, metrics, tmp_path)
        slot.put(inner, residency)
        lifecycle.advance(Phase.READY)
        settings = Settings(
            model=tmp_path / "base",
            served_model_name=BASE,
            store=tmp_path / "store",
            admin_source_root=tmp_path / "sources",
        )
        spans = InMemorySpanExporter()
        tracing = Tracing(spans)
        app = create_app(
            lifecycle=lifecycle,
            names=ModelNames(BASE, catalog),
            recorder=Recorder(metrics, tracing),
            engine=slot,
            max_body_bytes=50_000,
            started_at=1,
            admin=create_router(Shelf(catalog, slot), Publisher(settings, catalog)),
            admin_token=TOKEN,
            max_upload_bytes=1_000_000,
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
                client,
                app,
                inner,
                engine,
                lifecycle,
                metrics,
                spans,
                catalog,
                tracing,
                log,
                residency,
            )
        logger.removeHandler(handler)
        tracing.close()


@pytest.fixture
def stage(tmp_path: Path, metrics: Metrics) -> Iterator[Stage]:
    stage = Stage(tmp_path, metrics)
    yield stage
    stage.catalog.close()
