"""The gateway's two sides: what listens for callers, and what asks the replicas."""

from __future__ import annotations

import asyncio

import aiohttp
import uvicorn

from cluster.arguments import GatewayArguments
from cluster.gateway.app import Gateway
from server.http.bodies import Bodies
from server.http.connections import ACCEPTED_AT_ONCE, Connections, Limits
from server.http.faults import FaultMiddleware
from server.preflight import take_descriptors
from server.serve import HttpServer

DRAIN_SECONDS = 600  # as long as the longest answer
_CONNECT_SECONDS = 5.0
_KEEP_ALIVE_SECONDS = 30.0  # less than a server's own keep_alive_seconds


def open_session() -> aiohttp.ClientSession:
    """A session without bounds on answers: their lengths and times are the replicas' business."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def bodies_of(arguments: GatewayArguments) -> Bodies:
    return Bodies(
        max_bytes=arguments.max_body_bytes,
        max_sum=arguments.max_bodies_bytes,
        seconds=arguments.body_seconds,
    )


def http_server(gateway: Gateway, arguments: GatewayArguments) -> HttpServer:
    """The server's own bounds on connections and heads, in front of the gateway."""
    connections = Connections(
        Limits(
            connections=take_descriptors(arguments.max_connections),
            head_seconds=arguments.head_seconds,
            keep_alive_seconds=arguments.keep_alive_seconds,
        )
    )
    asyncio.get_running_loop().set_exception_handler(connections.on_loop_exception)
    config = uvicorn.Config(
        FaultMiddleware(gateway),
        http=connections,  # type: ignore[arg-type]  # makes the protocols
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_certfile=arguments.ssl_certfile,
        ssl_keyfile=arguments.ssl_keyfile,
    )
    return HttpServer(config)
