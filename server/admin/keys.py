"""/admin/keys: API keys, as `lorry keys --url` makes and changes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Response

from adapters.catalog.keys import Keys
from adapters.keys import Key
from server.admin.bodies import NewKey, Rotation
from server.admin.guard import Actor, Limit
from server.admin.views import describe_event

KeyName = Annotated[str, Path(min_length=1, max_length=64)]


def create_key_router(keys: Keys) -> APIRouter:
    router = APIRouter(tags=["keys"])

    @router.get("/admin/keys", response_model=dict[str, Any])
    async def list_keys() -> Response:
        """All keys by name, revoked ones too, without their secrets."""
        text = await asyncio.to_thread(_encode, keys)
        return Response(text, media_type="application/json")

    @router.post("/admin/keys", status_code=201)
    async def create_key(body: NewKey, actor: Actor) -> dict[str, Any]:
        """Make a key. `key` is its secret, which is shown this once."""
        key, secret = await asyncio.to_thread(keys.create, body.key(), actor=actor)
        return {"key": secret} | key.as_json()

    @router.get("/admin/keys/{name}")
    async def show_key(name: KeyName) -> dict[str, Any]:
        """One key, without its secret."""
        return (await asyncio.to_thread(keys.find, name)).as_json()

    @router.post("/admin/keys/{name}/rotate")
    async def rotate_key(
        name: KeyName, actor: Actor, body: Rotation | None = None
    ) -> dict[str, Any]:
        """Give a key a new secret, shown this once; the ones before are good for the overlap."""
        overlap = timedelta(seconds=(body or Rotation()).overlap_seconds)
        key, secret = await asyncio.to_thread(keys.rotate, name, overlap=overlap, actor=actor)
        return {"key": secret} | key.as_json()

    @router.post("/admin/keys/{name}/block")
    async def block_key(name: KeyName, actor: Actor) -> dict[str, Any]:
        """Put a key out of force, until it is unblocked; its running calls end."""
        return await _change(keys.block, name, actor)

    @router.post("/admin/keys/{name}/unblock")
    async def unblock_key(name: KeyName, actor: Actor) -> dict[str, Any]:
        """Put a blocked key into force again."""
        return await _change(keys.unblock, name, actor)

    @router.post("/admin/keys/{name}/revoke")
    async def revoke_key(name: KeyName, actor: Actor) -> dict[str, Any]:
        """Put a key out of force for good; its running calls end."""
        return await _change(keys.revoke, name, actor)

    @router.get("/admin/keys/{name}/history")
    async def show_key_history(name: KeyName, limit: Limit = 100) -> dict[str, Any]:
        """The last changes to a key, oldest first."""
        await asyncio.to_thread(keys.find, name)
        return await _history(keys, name, limit)

    @router.get("/admin/history/keys")
    async def show_all_key_history(limit: Limit = 100) -> dict[str, Any]:
        """The last changes to any key, oldest first."""
        return await _history(keys, None, limit)

    return router


def _encode(keys: Keys) -> bytes:
    # Here, in a thread: ten thousand take a good part of a second.
    listed = [key.as_json() for key in keys.all()]
    return msgspec.json.encode({"object": "list", "data": listed})


async def _history(keys: Keys, name: str | None, limit: int) -> dict[str, Any]:
    events = await asyncio.to_thread(keys.list_events, name, limit)
    return {"object": "list", "data": [describe_event(event) for event in events]}


async def _change(change: Callable[..., Key], name: str, actor: str) -> dict[str, Any]:
    return (await asyncio.to_thread(change, name, actor=actor)).as_json()
