"""The routes of the admin API; shelf.py and publishing.py do the work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.requests import ClientDisconnect

from adapters.catalog import AdapterVersion
from adapters.catalog.evaluations import Gate
from adapters.catalog.keys import Keys
from adapters.names import STABLE
from server.admin import views
from server.admin.bodies import (
    AliasName,
    Composition,
    EvaluationBody,
    Gating,
    LoadLora,
    Name,
    Pointing,
    Publication,
    Rollback,
    SourcePublication,
    UnloadLora,
    Version,
    Weighting,
)
from server.admin.guard import Actor, Limit, is_form, read_actor
from server.admin.keys import create_key_router
from server.admin.publishing import Publisher
from server.admin.shelf import Shelf
from server.errors import InvalidRequest

After = Annotated[Name | None, Query(description="The `last_id` of the page before.")]
_UPLOAD = {
    "type": "object",
    "required": ["name", "file"],
    "properties": {
        "name": {"type": "string"},
        "alias": {"type": "array", "items": {"type": "string"}},
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
}
_PUBLISH_BODY = {
    "requestBody": {
        "content": {
            "multipart/form-data": {"schema": _UPLOAD},
            "application/json": {"schema": SourcePublication.model_json_schema()},
        }
    }
}


def create_router(shelf: Shelf, publisher: Publisher, keys: Keys) -> APIRouter:
    router = APIRouter(dependencies=[Depends(read_actor)])
    adapters = APIRouter(prefix="/admin/adapters", tags=["adapters"])
    _add_adapters(adapters, shelf, publisher)
    _add_aliases(adapters, shelf)
    _add_versions(adapters, shelf, publisher)
    router.include_router(adapters)

    @router.get("/admin/history", tags=["adapters"])
    async def show_all_history(limit: Limit = 100) -> dict[str, Any]:
        """The last changes to any adapter, oldest first."""
        return {"object": "list", "data": await shelf.history(None, limit)}

    router.include_router(create_key_router(keys))
    _add_compatible(router, shelf, publisher)
    return router


def _add_adapters(router: APIRouter, shelf: Shelf, publisher: Publisher) -> None:
    @router.get("", response_model=dict[str, Any])
    async def list_adapters(after: After = None, limit: Limit = 100) -> Response:
        """Adapters by name: versions, aliases, and what the engine holds of them."""
        return Response(await shelf.list_page(after, limit), media_type="application/json")

    @router.post("", status_code=201, openapi_extra=_PUBLISH_BODY)
    async def publish_adapter(request: Request, actor: Actor) -> dict[str, Any]:
        """Publish a version: its files as a form, or a source that the server allows."""
        if is_form(request.headers):
            version = await publisher.publish_upload(request, actor)
        else:
            wanted = await _read_source(request)
            version = await publisher.publish_source(wanted.source, wanted, actor)
        return await shelf.describe_version(version)

    @router.get("/{name}")
    async def show_adapter(name: Name) -> dict[str, Any]:
        """One adapter."""
        return await shelf.describe(name)

    @router.get("/{name}/history")
    async def show_history(name: Name, limit: Limit = 100) -> dict[str, Any]:
        """The last changes to an adapter, oldest first."""
        return {"object": "list", "data": await shelf.history(name, limit)}

    @router.put("/{name}/weight")
    async def weigh_adapter(name: Name, body: Weighting, actor: Actor) -> dict[str, Any]:
        """Set an adapter's weight beside others, whichever version answers."""
        await shelf.weigh(name, body.weight, actor)
        return {"name": name, "weight": body.weight}

    @router.put("/{name}/gate")
    async def set_gate(name: Name, body: Gating, actor: Actor) -> dict[str, Any]:
        """Let aliases move only to versions that are shown to be better, or take that back."""
        await shelf.set_gate(name, body.metric, actor)
        return {"name": name, "gate": body.metric}

    @router.post("/{reference}/load")
    async def load_adapter(reference: str) -> dict[str, Any]:
        """Load the versions that a name means now; answers when they are resident."""
        return _labels(await shelf.load(reference))

    @router.post("/{reference}/unload")
    async def unload_adapter(reference: str) -> dict[str, Any]:
        """Unload the versions that a name means now; the next call loads them again."""
        return _labels(await shelf.unload(reference))


def _add_aliases(router: APIRouter, shelf: Shelf) -> None:
    @router.put("/{name}/aliases/{alias}")
    async def point_alias(
        name: Name, alias: AliasName, body: Pointing, actor: Actor
    ) -> dict[str, Any]:
        """Point an alias at a version, or split its requests between several."""
        split = body.split if body.version is None else {body.version: 1}
        assert split is not None
        gate = Gate(body.gate, body.force)
        return views.describe_alias(await shelf.point(name, alias, split, actor, gate))

    @router.delete("/{name}/aliases/{alias}")
    async def drop_alias(name: Name, alias: AliasName, actor: Actor) -> dict[str, Any]:
        """Delete an alias; its versions stay."""
        await shelf.drop_alias(name, alias, actor)
        return {"name": name, "alias": alias, "deleted": True}

    @router.post("/{name}/aliases/{alias}/rollback")
    async def roll_back(
        name: Name, alias: AliasName, actor: Actor, body: Rollback | None = None
    ) -> dict[str, Any]:
        """Point an alias at its previous target; the next request follows."""
        to = body.to if body else None
        return views.describe_alias(await shelf.roll_back(name, alias, to, actor))


def _add_versions(router: APIRouter, shelf: Shelf, publisher: Publisher) -> None:
    @router.post("/{name}/compose", status_code=201)
    async def compose_adapter(name: Name, body: Composition, actor: Actor) -> dict[str, Any]:
        """Publish a sum of adapters as the next version of a name."""
        return await shelf.describe_version(await publisher.publish_sum(name, body, actor))

    @router.post("/{name}/versions/{version}/evaluations", status_code=201)
    async def record_evaluation(
        name: Name, version: Version, body: EvaluationBody, actor: Actor
    ) -> dict[str, Any]:
        """Record how well a version answers; the gate of an alias reads it."""
        return (await shelf.evaluate(name, version, body.evaluation(), actor)).as_json()

    @router.post("/{name}/versions/{version}/pin")
    async def pin_version(name: Name, version: Version, actor: Actor) -> dict[str, Any]:
        """Load a version and never evict it."""
        return await shelf.describe_version(await shelf.pin(name, version, actor))

    @router.delete("/{name}/versions/{version}/pin")
    async def unpin_version(name: Name, version: Version, actor: Actor) -> dict[str, Any]:
        """Allow a version to be evicted again."""
        return await shelf.describe_version(await shelf.unpin(name, version, actor))

    @router.delete("/{name}/versions/{version}")
    async def remove_version(name: Name, version: Version, actor: Actor) -> dict[str, Any]:
        """Remove a version. `unloaded` is false while earlier calls still use it."""
        unloaded = await shelf.remove(name, version, actor)
        return {"name": name, "version": version, "deleted": True, "unloaded": unloaded}


def _add_compatible(router: APIRouter, shelf: Shelf, publisher: Publisher) -> None:
    """vLLM's two paths, for tools written for vLLM: they publish and withdraw."""

    @router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load_lora(body: LoadLora, actor: Actor) -> str:
        """Publish a folder as the name's next version, load it, and point `stable` at it."""
        if body.load_inplace:
            raise InvalidRequest(
                "`load_inplace` is not supported: new weights become a new version, and the name "
                "points at it. Leave it out.",
                code="unsupported",
                param="load_inplace",
            )
        shelf.check_ready()
        wanted = Publication(name=body.lora_name, aliases=[])
        version = await publisher.publish_source(body.lora_path, wanted, actor)
        await shelf.load(version.label)  # `stable` must not move to a version that can't load
        await shelf.point(version.name, STABLE, {version.version: 1}, actor)
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    @router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload_lora(body: UnloadLora, actor: Actor) -> str:
        """Delete the name's alias `stable` and unload its version; NAME@VERSION still answers."""
        await shelf.withdraw(body.lora_name, actor)
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


async def _read_source(request: Request) -> SourcePublication:
    try:
        body = await request.body()
    except ClientDisconnect:
        raise InvalidRequest("The caller hung up.", code="upload_incomplete") from None
    return SourcePublication.model_validate_json(body)


def _labels(versions: list[AdapterVersion]) -> dict[str, Any]:
    return {"object": "list", "data": [version.label for version in versions]}
