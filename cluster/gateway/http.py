"""The gateway's two sides: what listens for callers, and what asks the replicas."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import uvicorn
from aiohttp.connector import AddrInfoType

from cluster.arguments import GatewayArguments
from cluster.gateway.app import Gateway
from cluster.gateway.picking import Picker
from server.http.bodies import Bodies
from server.http.connections import ACCEPTED_AT_ONCE, Connections, Limits
from server.http.faults import FaultMiddleware
from server.http.protocol import MAX_HEAD_BYTES
from server.preflight import take_descriptors
from server.serve import HttpServer

DRAIN_SECONDS = 600  # as long as the longest answer
_CONNECT_SECONDS = 5.0
_KEEP_ALIVE_SECONDS = 30.0  # less than a server's own keep_alive_seconds


def open_session() -> aiohttp.ClientSession:
    """A session without bounds on answers: their lengths and times are the replicas' business."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, socket_factory=_watched_socket
        ),
        # A server's heads may be as large as a caller's, whose words it may repeat.
        max_line_size=2 * MAX_HEAD_BYTES,
        max_field_size=2 * MAX_HEAD_BYTES,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _watched_socket(address: AddrInfoType) -> socket.socket:
    """A socket that ends when nothing answers at the other end, without FIN or RST."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000)
    return made


def make_gateway(
    picker: Picker, session: aiohttp.ClientSession, arguments: GatewayArguments
) -> Gateway:
    bodies = Bodies(
        max_bytes=arguments.max_body_bytes,
        max_sum=arguments.max_bodies_bytes,
        seconds=arguments.body_seconds,
    )
    return Gateway(
        picker,
        session,
        bodies,
        max_held=arguments.max_bodies_bytes,
        wait_seconds=arguments.wait_seconds,
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
