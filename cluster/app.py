"""The two Serve applications of a cluster, built from their arguments.

`build_servers` and `build_gateway` are the `import_path`s of a Serve config file. They are apart so
that an upgrade of the servers leaves the endpoint as it is.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from cluster.arguments import GATEWAY, SERVER, SERVERS, GatewayArguments, ServersArguments
from cluster.autoscaling import CAPACITY, IN_FLIGHT, WAITING, QueuePolicy
from cluster.gateway.http import DRAIN_SECONDS, http_server, make_gateway, open_session
from cluster.routing import AdapterRouter, RayPicker, follow
from cluster.server_process import ServerProcess
from server.http.connections import Listener
from server.preflight import bind

# The servers' own queue is fair and bounded: Ray must not hold calls in front of it.
_UNLIMITED = 1_000_000
_HEALTH_PERIOD_SECONDS = 1.0
_HEALTH_TIMEOUT_SECONDS = 30.0
_ROUTERS_SECONDS = 2.0  # for the routers to hear that a replica leaves
_UPSCALE_SECONDS = 10.0  # for which more servers are wanted before one is added
_SLIVER = 0.001  # of a resource that only marks a node
_STOP_SECONDS = 30.0  # beyond the drain, for the process to end


class Server:
    """A replica: `lorry serve` in a child process, and what Ray asks about it."""

    process: ClassVar[type[ServerProcess]] = ServerProcess

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]
        given = ServersArguments(**arguments)
        settings = given.load()
        self._base = settings.base_name
        self._drain_seconds = settings.drain_seconds
        self._process = self.process(
            given.settings,
            given.engine_flags,
            cache=settings.cache,
            store_cache=settings.store_cache,
            host=given.host or ray.util.get_node_ip_address(),
            name=serve.get_replica_context().replica_id.unique_id,
        )
        self._capacity = (await self._process.start())["capacity"]

    def describe(self) -> dict[str, Any]:
        return {
            "name": self._process.name,
            "url": self._process.url,
            "base": self._base,
            "capacity": self._capacity,
        }

    def record_replica_metadata(self) -> dict[str, Any]:
        return self.describe()

    async def check_health(self) -> None:
        """Raises when the process is gone or does not answer: Ray replaces the replica then.

        A server whose engine restarts is well: it answers, and its calls wait.
        """
        await self._process.ready()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        ready = await self._process.ready()
        return {name: float(ready[name]) for name in (IN_FLIGHT, WAITING, CAPACITY)}

    async def __del__(self) -> None:
        """Ray's hook for the end of a replica, once no router knows it any more."""
        await self._process.stop(self._drain_seconds)


class Endpoint:
    """The gateway: it listens on a port of its node, and Ray is not in the way of the bytes."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]
        given = GatewayArguments(**arguments)
        self._session = open_session()
        self._following = asyncio.create_task(follow(SERVERS, SERVER))
        gateway = make_gateway(RayPicker(SERVER), self._session, given)
        self._http = http_server(gateway, given)
        listener = Listener(fileno=bind(given.host, given.port, shared=True).detach())
        self._serving = asyncio.create_task(self._http.serve(sockets=[listener]))

    async def check_health(self) -> None:
        if self._serving.done():
            raise RuntimeError("the gateway has stopped listening")

    async def __del__(self) -> None:
        self._following.cancel()
        self._http.should_exit = True
        await self._serving
        await self._session.close()


def build_servers(arguments: dict[str, Any]) -> Application:
    """The application `lorry-servers`; raises ValidationError or SettingsInvalid."""
    return servers_application(ServersArguments(**arguments))


def servers_application(given: ServersArguments, server: type[Server] = Server) -> Application:
    drain_seconds = given.load().drain_seconds
    options: dict[str, Any] = {"num_replicas": given.replicas}
    if given.max_replicas > given.replicas:
        policy = {"calls_per_replica": given.calls_per_replica}
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=given.replicas,
                max_replicas=given.max_replicas,
                upscale_delay_s=_UPSCALE_SECONDS,
                policy=AutoscalingPolicy(policy_function=QueuePolicy, policy_kwargs=policy),
            )
        }
    deployment: Any = serve.deployment(
        server,
        name=SERVER,
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": given.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=AdapterRouter,  # type: ignore[arg-type]  # Ray's stub is wrong
            request_router_kwargs={"deployment": SERVER},
        ),
        max_ongoing_requests=_UNLIMITED,
        max_surge_percent=given.max_surge_percent,
        health_check_period_s=_HEALTH_PERIOD_SECONDS,
        health_check_timeout_s=_HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_wait_loop_s=_ROUTERS_SECONDS,
        graceful_shutdown_timeout_s=drain_seconds + _STOP_SECONDS,
        **options,
    )
    application: Application = deployment.bind(given.model_dump(mode="json"))
    return application


def build_gateway(arguments: dict[str, Any]) -> Application:
    """The application `lorry-gateway`; raises ValidationError."""
    given = GatewayArguments(**arguments)
    # One: the new gateway listens beside the old one before that stops (SO_REUSEPORT). Several:
    # each has a node, and they are upgraded in turn.
    upgrade: dict[str, Any] = {"max_surge_percent": 100}
    if given.gateways > 1:
        upgrade = {"max_replicas_per_node": 1}
    deployment: Any = serve.deployment(
        Endpoint,
        name=GATEWAY,
        num_replicas=given.gateways,
        ray_actor_options={
            "num_cpus": 0,
            "resources": {given.resource: _SLIVER} if given.resource else {},
        },
        **upgrade,
        health_check_period_s=_HEALTH_PERIOD_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS + _STOP_SECONDS,
    )
    application: Application = deployment.bind(given.model_dump(mode="json"))
    return application
