"""Methods and slashes: 405 names the methods, HEAD is GET, and nothing redirects."""

from __future__ import annotations

import pytest
from sockets import served
from standin_server import TOKEN

from server.paths import INFERENCE_PATHS

ADMIN = {"authorization": f"Bearer {TOKEN}"}


def routes_of(app):
    methods = {}
    for route in app.routes:
        path = route.path.replace("{version}", "1").replace("{model:path}", "tiny")
        for name in ("{name}", "{alias}", "{reference}"):
            path = path.replace(name, "red")
        methods.setdefault(path, set()).update(route.methods)
    return methods | {path: {"POST"} for path in INFERENCE_PATHS}


async def test_a_405_names_every_method_of_its_path(house):
    found = {}
    for path, methods in routes_of(house.app).items():
        other = "PUT" if "PUT" not in methods else "GET"
        answer = await house.client.request(other, path, headers=ADMIN)
        assert answer.status_code == 405, path
        assert answer.json()["error"]["code"] == "method_not_allowed"
        found[path] = set(answer.headers["allow"].split(", ")) - {"HEAD"}
    assert found == {path: m - {"HEAD"} for path, m in routes_of(house.app).items()}
    assert found["/admin/adapters"] == {"GET", "POST"}
    assert len(found) > 20


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/v1/models"])
async def test_head_is_answered_as_get_without_a_body(house, path):
    async with served(house.app) as server:
        caller = await server.connect(b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        lines = (await caller.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert any(line.startswith(b"content-length: ") for line in lines)
        assert (await server.get(path)).status == 200
        caller.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await caller.answer()).body  # nothing was left of a body


async def test_head_of_an_inference_path_is_a_405(house):
    answer = await house.client.head("/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_options_without_cors_is_a_405_that_names_the_methods(house):
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for path, allow in (("/v1/completions", "POST"), ("/v1/models", "GET, HEAD")):
        answer = await house.client.options(path, headers=preflight)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_no_path_redirects(house):
    for path, methods in routes_of(house.app).items():
        for method in methods:
            answer = await house.client.request(
                method, f"{path}/", headers=ADMIN | {"host": "evil.example"}
            )
            assert answer.status_code in (404, 405), path
            assert "location" not in answer.headers
    answer = await house.client.get("/metrics/", headers={"host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
