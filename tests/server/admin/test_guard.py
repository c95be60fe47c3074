"""Nothing of the admin API is done, or read, without the token; how its requests are cut off."""

from __future__ import annotations

import asyncio
import json

import pytest
from standin_server import TOKEN, scope_of

ROUTES = [
    ("GET", "/admin/adapters"),
    ("POST", "/admin/adapters"),
    ("GET", "/admin"),
    ("GET", "/admin/history"),
    ("GET", "/admin/adapters/red"),
    ("DELETE", "/admin/adapters/red/versions/1"),
    ("PUT", "/admin/adapters/red/aliases/stable"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
]


@pytest.mark.parametrize(
    "authorization", [None, "", TOKEN, f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}x", "Bearer é"]
)
async def test_without_the_token_a_request_is_refused_and_its_body_not_read(house, authorization):
    headers = {} if authorization is None else {"authorization": authorization.encode()}

    async def body():
        raise AssertionError("the body was read")
        yield b""

    found = {}
    for method, path in ROUTES:
        response = await house.client.request(method, path, headers=headers, content=body())
        code = response.json()["error"]["code"]
        challenge = response.headers.get("www-authenticate")
        found[method, path] = (response.status_code, challenge, code)
    assert found == dict.fromkeys(ROUTES, (401, "Bearer", "invalid_admin_token"))


async def test_a_server_without_a_token_refuses_every_admin_request(house):
    house.parts.authenticator._token = None
    found = {}
    for method, path in ROUTES:
        answer = await house.client.request(method, path)
        error = answer.json()["error"]
        names_variable = "LORRY_ADMIN_TOKEN" in error["message"]
        found[method, path] = (answer.status_code, error["code"], names_variable)
    assert found == dict.fromkeys(ROUTES, (403, "admin_disabled", True))


async def test_every_admin_route_is_behind_the_guard(house):
    paths = (await house.client.get("/openapi.json")).json()["paths"]
    admin = [path for path in paths if "adapter" in path]
    assert len(admin) == 15
    for path in admin:
        for method in paths[path]:
            url = path.replace("{version}", "1")
            assert (await house.client.request(method, url)).status_code == 401


async def test_a_caller_that_hangs_up_during_its_body_is_a_400_without_a_traceback(house, caplog):
    messages = [{"type": "http.request", "body": b'{"na', "more_body": True}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    sent: list[dict] = []
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"text/json")]
    await house.app(scope_of("/admin/adapters", headers), receive, send)
    assert sent[0]["status"] == 400
    assert "Traceback" not in caplog.text


async def test_a_request_that_the_drain_cuts_off_ends_with_draining(house):
    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    sent: list[dict] = []
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    call = asyncio.create_task(house.app(scope_of("/admin/adapters", headers), receive, send))
    await asyncio.sleep(0.05)
    call.cancel()
    await call
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["code"] == "draining"
    assert dict(sent[0]["headers"])[b"retry-after"] == b"5"
