"""What a cluster is made of: the arguments of its two Serve applications.

`lorry cluster up` fills them from its options and the settings of `lorry serve`; in a Serve config
file (`lorry cluster config` writes one) they stand under `args`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.store import Bucket
from server.settings import Settings, load_settings

SERVERS = "lorry-servers"  # the applications' names
GATEWAY = "lorry-gateway"
SERVER = "server"  # the deployments'
# Read from the environment of Ray's processes: a Serve config is stored and shown in plain text.
SECRETS = frozenset({"admin_token", "catalog"})
# The replica's own, or its machine's.
SET_HERE = frozenset({"host", "port", "replica", "watch", "admin_token_file"})
_OF_THE_GATEWAY = frozenset({"ssl_certfile", "ssl_keyfile"})  # it speaks TLS, and they do not


class ServersArguments(BaseModel):
    """The application `lorry-servers`: replicas of one `lorry serve`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(description="Settings of `lorry serve`; `model` at least.")
    engine_flags: tuple[str, ...] = Field(default=(), description="Flags of vLLM's engine.")
    replicas: int = Field(default=1, ge=1, le=1000, description="Servers, at least.")
    max_replicas: int = Field(
        default=0, ge=0, le=1000, description="Servers, at most; 0: as many as `replicas`."
    )
    calls_per_replica: float = Field(
        default=0.0,
        ge=0,
        description="Calls in flight for which there is one server; 0: what its engine works on.",
    )
    cpus: float = Field(default=1.0, ge=0, description="Processors that Ray reserves for each.")
    gpus: float = Field(default=0.0, ge=0, description="GPUs that Ray reserves for each.")
    host: str = Field(
        default="",
        description="Address that servers listen on; by default their node's address for Ray.",
    )

    @model_validator(mode="after")
    def _check(self) -> ServersArguments:
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        refused = sorted(self.settings.keys() & (SET_HERE | _OF_THE_GATEWAY | {"admin_token"}))
        if refused:
            raise ValueError(f"settings: {', '.join(refused)} can't be set for a cluster")
        return self

    def load(self) -> Settings:
        """The settings of each server; raises SettingsInvalid."""
        return load_settings(None, **self.settings)


class GatewayArguments(BaseModel):
    """The application `lorry-gateway`: the endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port.")
    gateways: int = Field(default=1, ge=1, le=100, description="Gateways, each on its own node.")
    ssl_certfile: Path | None = Field(default=None, description="Certificate, for HTTPS.")
    ssl_keyfile: Path | None = Field(default=None, description="Its key.")
    wait_seconds: float = Field(
        default=30.0, gt=0, description="Longest wait for a server that takes a call."
    )
    max_body_bytes: int = Field(default=16 << 20, ge=1024, description="Largest request body.")
    max_bodies_bytes: int = Field(
        default=256 << 20, ge=1024, description="All that arrive at once."
    )
    body_seconds: float = Field(default=120.0, gt=0, description="Longest time for a body.")
    head_seconds: float = Field(default=15.0, gt=0, description="Longest time for a head.")
    keep_alive_seconds: float = Field(default=75.0, gt=0, description="Of an idle connection.")
    max_connections: int = Field(default=0, ge=0, description="0: by the descriptors.")


def ship(settings: Settings) -> dict[str, Any]:
    """The settings that were given, as they travel to the servers: plain values, absolute paths."""
    given = settings.model_dump(
        exclude_unset=True, exclude=set(SET_HERE | SECRETS | _OF_THE_GATEWAY)
    )
    if Path(settings.model).exists():
        given["model"] = Path(settings.model)
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Bucket) else value


def serve_config(servers: ServersArguments, gateway: GatewayArguments) -> str:
    """The cluster as a Serve config file (ray.serve.schema.ServeDeploySchema), in YAML."""
    parts = ((SERVERS, "build_servers", servers), (GATEWAY, "build_gateway", gateway))
    applications = [
        {
            "name": name,
            "route_prefix": None,
            "import_path": f"cluster.app:{builder}",
            "args": arguments.model_dump(mode="json", exclude_unset=True),
        }
        for name, builder, arguments in parts
    ]
    config = {"proxy_location": "Disabled", "applications": applications}
    return yaml.safe_dump(config, sort_keys=False)
