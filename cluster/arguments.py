"""What a cluster is made of: the arguments of its two Serve applications.

`lorry cluster up` fills them from its options and the settings of `lorry serve`; in a Serve config
file (`lorry cluster up --print` writes one) they stand under `args`.
"""

from __future__ import annotations

import os
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
NO_FILE = Path(os.devnull)  # in the place of a lorry.toml: its settings are among the arguments
OF_THE_GATEWAY = frozenset({"ssl_certfile", "ssl_keyfile"})  # it speaks TLS, and they do not


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
    max_surge_percent: int = Field(
        default=100,
        ge=0,
        le=100,
        description="New servers that an upgrade starts before it stops old ones; they need room.",
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
        refused = sorted(self.settings.keys() & (SET_HERE | OF_THE_GATEWAY | {"admin_token"}))
        if refused:
            raise ValueError(f"settings: {', '.join(refused)} can't be set for a cluster")
        return self

    def load(self) -> Settings:
        """The settings of each server; raises SettingsInvalid."""
        return load_settings(NO_FILE, **self.settings)


class GatewayArguments(BaseModel):
    """The application `lorry-gateway`: the endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port.")
    resource: str = Field(
        default="", description="Custom resource of Ray's nodes that a gateway may run on."
    )
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

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.ssl_certfile else 'http'}://{host}:{self.port}"


def shared_limits(settings: Settings) -> dict[str, Any]:
    """The settings of the servers that are the gateway's too: what callers may send, and TLS."""
    names = {"max_body_bytes", "max_bodies_bytes", "body_seconds", "head_seconds"}
    names |= {"keep_alive_seconds", "max_connections"}
    given = settings.model_dump(include=names, exclude_unset=True)
    files = {name: getattr(settings, name) for name in OF_THE_GATEWAY}
    return given | {name: file.resolve() for name, file in files.items() if file is not None}


def ship(settings: Settings) -> dict[str, Any]:
    """The settings that were given, as they travel to the servers: plain values, absolute paths."""
    given = settings.model_dump(
        exclude_unset=True, exclude=set(SET_HERE | SECRETS | OF_THE_GATEWAY)
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
