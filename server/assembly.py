"""Settings and a catalog in; the HTTP application and its parts out.

The only wiring of a server: `lorry serve` runs it, and tests connect a stand-in engine to it. HTTP
answers from the start; inference calls are accepted once `connect` has put an engine behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.trace.export import SpanExporter
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from adapters.catalog import AdapterVersion, Catalog
from adapters.checkpoint.base import Base
from server.admin.publishing import Publisher
from server.engine.interface import AdapterEngine, Admission
from server.gate.gate import FairAdmission, PlainAdmission
from server.gate.keys import Authenticator
from server.gate.queue import Limits
from server.gate.quotas import Quotas
from server.gate.sharing import RulesWatch, Sharing
from server.gate.usage import UsageCounts
from server.heartbeat import Heartbeat
from server.http.app import create_app
from server.lifecycle import Attached, Lifecycle
from server.naming import ModelNames
from server.presence import Presence
from server.residency.catalog_sync import CatalogWatch, Pins, Removals
from server.residency.loading import Loader
from server.residency.occupancy import Occupancy
from server.residency.residency import Residency
from server.residency.routers import RouterSeries
from server.residency.served_files import Servable, ServedObjects
from server.residency.stacked_sums import StackedSums
from server.settings import Settings
from server.supervisor import RestartableEngine, Supervisor
from server.suspects import Suspects
from server.telemetry.metrics import Metrics
from server.telemetry.recorder import Recorder
from server.telemetry.tracing import Tracing


class Assembly:
    """One server: `app` is its HTTP side; the other parts are for the process that runs it.

    `registry` collects the metrics; `exporter` receives the spans (None: they are not exported).
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        registry: CollectorRegistry,
        exporter: SpanExporter | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.started = time.time()
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(registry, settings.base_name, settings.max_metric_adapters)
        self.tracing = Tracing(exporter)
        self.metrics.derive(
            "engine_up",
            "1 while the engine answers calls.",
            (),
            lambda: [((), self.lifecycle.is_up)],
        )
        self._heartbeat: Heartbeat | None = None
        self._sums: StackedSums | None = None
        self.metrics.derive(
            "engine_silent_seconds",
            "Time that the engine has owed an answer; 0 when it owes none.",
            (),
            lambda: [((), self._heartbeat.silent_seconds if self._heartbeat else 0.0)],
        )
        self.presence = Presence()
        self.suspects = Suspects()
        self.supervisor: Supervisor | None = None
        self.metrics.derive(
            "engine_restarts",
            "Times that the engine was started again after its process had ended.",
            (),
            lambda: [((), self.supervisor.restarts if self.supervisor else 0)],
            kind="counter",
        )
        self.catalog_watch = CatalogWatch(catalog, self.lifecycle)
        self.metrics.derive(
            "catalog_up",
            "1 while the catalog of adapters can be used.",
            (),
            lambda: [((), self.catalog_watch.problem is None)],
        )
        self.routers = RouterSeries(
            catalog, self.metrics, settings.max_metric_adapters, settings.max_loras
        )
        registry.register(self.routers)
        self.quotas = Quotas(self.metrics, count_cached=settings.count_cached)
        usage = UsageCounts()
        self.sharing = Sharing(
            catalog.usage,
            self.quotas,
            usage,
            self.metrics,
            count_cached=settings.count_cached,
        )
        self._rules_watch = RulesWatch(catalog.limits, self.quotas)
        self.publisher = Publisher(settings, catalog)
        token = settings.admin_token
        self.authenticator = Authenticator(
            catalog.keys,
            admin_token=token.get_secret_value() if token else None,
            requires_keys=settings.require_keys,
            open_metrics=settings.open_metrics,
            is_readable=lambda: self.catalog_watch.problem is None and not catalog.keys.is_lost,
        )
        self.app = create_app(
            settings,
            lifecycle=self.lifecycle,
            names=ModelNames(settings.base_name, catalog, settings.max_sums),
            recorder=Recorder(
                settings.base_name, self.metrics, self.tracing, settings.replica, usage
            ),
            registry=registry,
            before_scrape=self.routers.refresh,
            catalog=catalog,
            publisher=self.publisher,
            suspects=self.suspects,
            quotas=self.quotas,
            authenticator=self.authenticator,
            started_at=int(self.started),
            count_waiting=lambda: self.metrics.waiting,
        )
        self._followers: list[asyncio.Task[None]] = []

    async def connect(self, engine: AdapterEngine, app: ASGIApp, base: Base) -> None:
        """Put an engine, and vLLM's app on it, behind the HTTP side, and accept calls.

        Loads the pinned versions first; from then on follows the catalog and the engine's slots.
        """
        store = self.settings.open_store(lambda: residency.digests)
        self._sums = StackedSums(self.settings.cache, store, base, self.settings.max_sums)
        objects = ServedObjects(store, base, self._sums)
        residency, occupancy = build_residency(
            self.settings,
            engine,
            self.metrics,
            path_of=objects.path,
            check=objects.check,
            base_digest=None if self.settings.allow_base_mismatch else base.digest,
            presence=self.presence,
        )
        self._sums.residents = lambda: residency.digests
        await occupancy.look()
        await self._rules_watch.look()
        self.routers.connect(residency, occupancy)
        pins = Pins(self.catalog, residency)
        await pins.settle()
        removals = Removals(self.catalog, residency, self.metrics)
        admission = build_admission(self.settings, engine, residency, self.metrics)
        engine.admit_by(admission)
        self._heartbeat = Heartbeat(
            engine,
            self.lifecycle,
            self.settings.engine_stall_seconds,
            self.settings.engine_hang_seconds,
        )
        followers = (
            self.authenticator,
            self.catalog_watch,
            pins,
            occupancy,
            removals,
            self._heartbeat,
            self.quotas,
            self.sharing,
            self._rules_watch,
        )
        self._followers = [asyncio.create_task(follower.run()) for follower in followers]
        self.lifecycle.attach(Attached(app, residency, admission, engine.max_sequences))

    def supervise(self, engine: RestartableEngine) -> Supervisor:
        """What starts the connected engine again when it ends; the caller runs it."""
        attached = self.lifecycle.engine()
        self.supervisor = Supervisor(
            engine,
            attached.residency,
            attached.admission,
            self.lifecycle,
            self.presence,
            self.suspects,
            most=self.settings.max_engine_restarts,
            window=self.settings.engine_restart_minutes * 60,
        )
        return self.supervisor

    def disconnect(self) -> None:
        """Stop following the catalog and the engine's slots."""
        for follower in self._followers:
            follower.cancel()

    def close(self) -> None:
        """Export the last spans and delete the files of sums, once the engine has ended."""
        if self._sums is not None:
            self._sums.close()
        self.tracing.close()


def build_residency(
    settings: Settings,
    engine: AdapterEngine,
    metrics: Metrics,
    *,
    path_of: Callable[[AdapterVersion], Path],
    check: Callable[[AdapterVersion], object],
    base_digest: str | None,
    presence: Presence,
) -> tuple[Residency, Occupancy]:
    """The residency of one engine, and its gauges.

    `path_of` returns the folder of a version's files; `check` raises an AdapterError for files that
    can't be served; with a `base_digest` of None, adapters of any base are served.
    """
    loader = Loader(
        engine,
        path_of=path_of,
        check=check,
        metrics=metrics,
        within=settings.adapter_wait_seconds,
    )
    residency = Residency(
        engine,
        loader,
        capacity=settings.max_cpu_loras,
        most_sums=settings.max_sums,
        servable=Servable(settings.max_lora_rank, base_digest),
        metrics=metrics,
        wait_seconds=settings.adapter_wait_seconds,
        presence=presence,
    )
    places = {"device": settings.max_loras, "host": settings.max_cpu_loras}
    return residency, Occupancy(residency, engine, metrics, places)


def build_admission(
    settings: Settings, engine: AdapterEngine, residency: Residency, metrics: Metrics
) -> Admission:
    """The order in which requests enter this engine."""
    if settings.admission == "plain":
        return PlainAdmission(residency)
    limits = Limits(
        sequences=engine.max_sequences,
        adapters=settings.max_loras,
        sums=residency.most_sums,
        prefill_tokens=settings.max_prefill_tokens,
        calls=settings.max_queue_calls,
        tokens=settings.max_queue_tokens,
        wait_seconds=settings.max_wait_seconds,
    )
    return FairAdmission(limits, residency, metrics)
