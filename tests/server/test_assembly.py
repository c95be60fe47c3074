"""The one wiring: an engine connected to it answers calls and keeps what the catalog pins."""

from __future__ import annotations

import asyncio

import httpx2
from marked_server import BASE_NAME, write_adapter
from prometheus_client import CollectorRegistry
from publishing import publish
from server_process import ROOT
from standin_server import StandInApp, StandInEngine, standin_settings

from adapters.catalog import Catalog
from adapters.checkpoint.base import read_base
from adapters.store import Store
from server.assembly import Assembly

BASE = ROOT / "examples" / "shop" / "base"


async def test_a_connected_engine_holds_pins_serves_whole_files_and_is_let_go(tmp_path):
    settings = standin_settings(tmp_path, model=BASE, served_model_name=BASE_NAME)
    digests = {}
    for seed, name in enumerate(("red", "green", "blue")):
        adapter = write_adapter(tmp_path / name, seed)
        given = {"store": settings.store, "base": BASE, "base_name": BASE_NAME}
        digests[name] = publish(adapter, name=name, **given).digest
    (Store(settings.store).path(digests["blue"]) / "adapter_model.safetensors").unlink()
    engine = StandInEngine()
    with Catalog.open(settings.store) as catalog:
        catalog.pin("red", 1, actor="test")
        parts = Assembly(settings, catalog, CollectorRegistry())
        transport = httpx2.ASGITransport(app=parts.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://lorry") as client:

            async def complete(model: str) -> httpx2.Response:
                return await client.post("/v1/completions", json={"model": model, "prompt": "x"})

            assert (await complete("green")).json()["error"]["code"] == "starting"
            await parts.connect(engine, StandInApp(engine), read_base(BASE))
            assert [name.partition("#")[0] for name in engine.loaded.values()] == ["red@1"]
            assert (await complete("green")).headers["x-lorry-adapter"] == "green@1"
            assert (await complete("blue")).json()["error"]["code"] == "adapter_load_failed"
        followers = [each for each in asyncio.all_tasks() if ".run" in repr(each.get_coro())]
        assert len(followers) == 6
        parts.disconnect()
        await asyncio.gather(*followers, return_exceptions=True)
        assert all(each.cancelled() for each in followers)
        parts.tracing.close()
