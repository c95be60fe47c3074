"""Fixtures: a real base, three real adapters and one real server, shared by the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from admin_client import TOKEN, AdminClient
from otlp_receiver import OtlpReceiver
from server_process import ServerProcess
from shop import SERVED, Shop, keep_shop, train_shop


@pytest.fixture(scope="session")
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Publishes the kept adapters; with --all, trains them with this checkout."""
    make = train_shop if request.config.option.all else keep_shop
    return make(tmp_path_factory.mktemp("shop") / "store")


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def server(
    shop: Shop, receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """The shared server."""
    server = ServerProcess(
        shop.base,
        shop.store,
        tmp_path_factory.mktemp("server") / "log",
        *SERVED,
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
            "LORRY_ADMIN_TOKEN": TOKEN,
            "AWS_SECRET_ACCESS_KEY": TOKEN,  # of a bucket, which this server has not
            "LORRY_ADMIN_SOURCE_ROOT": str(shop.store.parent),
        },
    )
    try:
        yield server.wait_ready()
    finally:
        server.kill()


@pytest.fixture
def admin(server: ServerProcess, shop: Shop) -> Iterator[AdminClient]:
    with AdminClient(server.url, shop.store) as admin:
        yield admin
