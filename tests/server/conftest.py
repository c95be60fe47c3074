"""Fixtures: a server with stand-ins for vLLM's app and engine; the rest is the product's own."""

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
    House,
    StandInApp,
    StandInEngine,
    attach,
    publish,
    standin_settings,
)

from adapters.catalog import Catalog
from server.assembly import Assembly
from server.telemetry.metrics import Metrics


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A log stream; restores the process's loggers, which `configure_logging` changes."""
    names = ("", "lorry", "server", "uvicorn", "opentelemetry", "bitsandbytes", "vllm")
    loggers = [logging.getLogger(name) for name in names]
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
async def house(tmp_path: Path) -> AsyncIterator[House]:
    spans = InMemorySpanExporter()
    settings = standin_settings(tmp_path, admin_source_root=tmp_path / "sources")
    with Catalog.open(settings.store) as catalog:
        for name in ("red", "green", "blue"):
            publish(catalog, name)
        parts = Assembly(settings, catalog, CollectorRegistry(), spans)
        engine = StandInEngine()
        inner = StandInApp(engine)
        residency = attach(parts, engine, inner)
        log: list[dict[str, Any]] = []
        handler = logging.Handler()
        handler.emit = lambda record: log.append(record.call)  # type: ignore[attr-defined]
        logger = logging.getLogger("lorry.calls")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        transport = httpx2.ASGITransport(app=parts.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://lorry") as client:
            yield House(client, parts, inner, engine, residency, spans, log)
        logger.removeHandler(handler)
        parts.tracing.close()


@pytest.fixture
def stage(tmp_path: Path, metrics: Metrics) -> Iterator[Stage]:
    stage = Stage(tmp_path, metrics)
    yield stage
    stage.catalog.close()
