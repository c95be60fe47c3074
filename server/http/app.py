"""The HTTP application: our routes and middleware outside, vLLM's app behind an allow-list.

No path redirects: its address would be built from the caller's `Host`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware

from adapters.catalog import AdapterVersion, Catalog, Published
from adapters.keys import Key
from adapters.sums import AdapterSum
from server.admin.accounts import create_accounts_router, create_usage_router
from server.admin.guard import AdminGuard
from server.admin.publishing import Publisher
from server.admin.router import create_router
from server.admin.shelf import Shelf
from server.gate.keys import Authenticator
from server.gate.quotas import Quotas
from server.http.bodies import Bodies
from server.http.cors import Cors
from server.http.error_handlers import add_error_handlers
from server.http.faults import FaultMiddleware
from server.http.key_guard import KeyGuard, caller_of
from server.http.middleware import InferenceMiddleware
from server.http.openapi import complete
from server.http.plain_routes import PlainRoutes
from server.http.shape import Shape
from server.lifecycle import Lifecycle, Phase
from server.naming import ModelNames, may_use
from server.settings import Settings
from server.suspects import Suspects
from server.telemetry.exposition import Snapshot, choose_encoder
from server.telemetry.recorder import Recorder

_MOST_LISTS = 64  # of models, as keys see them, in memory


def create_app(
    settings: Settings,
    *,
    lifecycle: Lifecycle,
    names: ModelNames,
    recorder: Recorder,
    registry: CollectorRegistry,
    before_scrape: Callable[[], Awaitable[None]],
    catalog: Catalog,
    publisher: Publisher,
    suspects: Suspects,
    quotas: Quotas,
    authenticator: Authenticator,
    started_at: int,
    count_waiting: Callable[[], int],
) -> FastAPI:
    """`started_at`: Unix seconds, the base model's `created` in /v1/models. `before_scrape` readies
    what the registry collects. `count_waiting`: of the calls in flight, those that wait."""
    middleware = [  # the outermost first
        Middleware(Cors, origins=settings.cors_origins),
        Middleware(FaultMiddleware),
        Middleware(KeyGuard, authenticator=authenticator),
        Middleware(
            AdminGuard,
            max_upload_bytes=settings.max_upload_bytes,
            body_seconds=settings.body_seconds,
        ),
        Middleware(
            InferenceMiddleware,
            lifecycle=lifecycle,
            names=names,
            recorder=recorder,
            bodies=Bodies(
                max_bytes=settings.max_body_bytes,
                max_sum=settings.max_bodies_bytes,
                seconds=settings.body_seconds,
            ),
            shape=Shape(settings.max_body_objects, settings.max_body_values),
            suspects=suspects,
            quotas=quotas,
            authenticator=authenticator,
        ),
        Middleware(PlainRoutes, max_body_bytes=settings.max_body_bytes),
    ]
    app = FastAPI(
        title="Lorry",
        docs_url=None,
        redoc_url=None,
        middleware=middleware,
        redirect_slashes=False,
    )
    _add_health(app, lifecycle, settings, count_waiting, lambda: authenticator.is_shut)
    _add_metrics(app, registry, before_scrape)
    _add_models(app, names, started_at)
    app.include_router(create_accounts_router(catalog))
    app.include_router(create_usage_router(catalog))
    app.include_router(create_router(Shelf(catalog, lifecycle), publisher, catalog.keys))
    add_error_handlers(app)
    describe = app.openapi
    app.openapi = lambda: complete(describe())  # type: ignore[method-assign]
    return app


def _add_health(
    app: FastAPI,
    lifecycle: Lifecycle,
    settings: Settings,
    count_waiting: Callable[[], int],
    has_keys: Callable[[], bool],
) -> None:
    @app.get("/livez")
    async def livez() -> JSONResponse:
        """200 unless the engine has died: restart the process then."""
        alive = lifecycle.phase is not Phase.DEAD
        return JSONResponse({"status": lifecycle.phase}, 200 if alive else 503)

    @app.get("/readyz")
    @app.get("/health", include_in_schema=False)
    async def readyz(request: Request) -> JSONResponse:
        """200 when the server should get calls; else 503, with the phase or what hinders it."""
        body: dict[str, Any] = {
            "status": lifecycle.status,
            "stage": lifecycle.stage,
            "in_flight": lifecycle.in_flight,
            "waiting": count_waiting(),
            "capacity": lifecycle.capacity,
        }
        if settings.replica:
            body["replica"] = settings.replica
        if lifecycle.is_ready:
            return JSONResponse(body)
        if lifecycle.phase is Phase.READY:
            reasons = dict(lifecycle.hindrances)
            words = "; ".join(reasons.values())
            body |= {"stage": words, "reason": next(iter(reasons), None)}
        if has_keys() and request.url.path == "/readyz":
            body["stage"] = lifecycle.status  # the words may name files and hosts: see /health
        return JSONResponse(body, 503, {"retry-after": "5"})


def _add_metrics(
    app: FastAPI, registry: CollectorRegistry, before_scrape: Callable[[], Awaitable[None]]
) -> None:
    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus text, or OpenMetrics with exemplars when the scraper accepts it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        await before_scrape()
        text = await asyncio.to_thread(encode, Snapshot.of(registry))
        return Response(text, headers={"content-type": content_type})


def _add_models(app: FastAPI, names: ModelNames, started_at: int) -> None:
    base = {
        "id": names.base,
        "object": "model",
        "created": started_at,
        "owned_by": "lorry",
        "root": names.base,
        "parent": None,
    }

    listed: tuple[Published, ...] = ()
    encoded: dict[Any, bytes] = {}  # what of it keys may use

    @app.get("/v1/models", response_model=dict[str, Any])
    async def list_models(request: Request) -> Response:
        """The base, and the version that each adapter's bare name means now: those that the key
        may use."""
        nonlocal listed
        key = caller_of(request.scope).key
        published = await names.published()
        if listed is not published or len(encoded) >= _MOST_LISTS:
            listed = published
            encoded.clear()
        sight = None if key is None else (key.base, key.adapters)
        if (found := encoded.get(sight)) is None:
            # In a thread: with ten thousand adapters it takes a tenth of a second.
            found = await asyncio.to_thread(_encode_models, base, published, key)
            if listed is published:
                encoded[sight] = found
        return Response(found, media_type="application/json")

    @app.get("/v1/models/{model:path}")
    async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
        """One model, by any name that a request can use; a sum of adapters too."""
        version = await names.resolve(model, key=caller_of(request.scope).key)
        if isinstance(version, AdapterSum):
            return _sum_card(model, version, names.base)
        return base if version is None else _card(model, version, names.base)


def _card(model: str, version: AdapterVersion | Published, base: str) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "lorry",
        "root": version.digest,
        "parent": base,
        "version": version.version,
    }


def _sum_card(model: str, version: AdapterSum, base: str) -> dict[str, Any]:
    parts = [part.as_json() for part in version.parts]
    facts = {"version": None, "sum": version.label, "rank": version.rank, "parts": parts}
    return _card(model, version, base) | facts


def _encode_models(
    base: dict[str, Any], published: tuple[Published, ...], key: Key | None
) -> bytes:
    bases = [base] if may_use(key, None) else []
    cards = [_published_card(each, base["id"]) for each in published if may_use(key, each.name)]
    return msgspec.json.encode({"object": "list", "data": bases + cards})


def _published_card(published: Published, base: str) -> dict[str, Any]:
    split = {"split": published.split} if published.split else {}
    return _card(published.name, published, base) | split
