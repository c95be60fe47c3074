"""An attacker's list: what a key must not open, and what must not be told by a refusal."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from api_keys import ADMIN, bearer, make_key
from sockets import Served, served
from standin_answers import Stream
from standin_server import BASE, TOKEN, House, publish

from adapters.errors import CatalogUnreadable
from adapters.keys import make_secret
from server.paths import INFERENCE_PATHS

CHAT = "/v1/chat/completions"
SEEN_SECONDS = 5.0  # within one as a rule, and more on a busy machine


def error_of(answer: Any) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def refused(answer: Any) -> tuple[int, str]:
    return answer.status_code, error_of(answer)["code"]


def told(answer: Any, hidden: str) -> Any:
    """All that an answer tells, but for the request's id and the name that was asked for."""
    mine = {"x-request-id", "traceresponse", "content-length"}
    headers = [(k, v) for k, v in answer.headers.items() if k not in mine]
    return answer.status_code, headers, answer.text.replace(hidden, "NAME")


@pytest.fixture
async def site(house: House) -> AsyncIterator[Served]:
    async with served(house.app) as site:
        yield site


# ---- deny by default


async def test_without_any_key_nothing_changes_for_callers(house):
    for headers in ({}, bearer("anything"), {"x-api-key": "anything"}):
        assert (await house.chat("red", headers=headers)).status_code == 200
        assert (await house.client.get("/v1/models", headers=headers)).status_code == 200
        assert (await house.client.get("/metrics", headers=headers)).status_code == 200
    assert refused(await house.client.get("/admin/adapters")) == (401, "invalid_admin_token")
    assert house.log[0]["key"] is None


async def test_with_any_key_every_path_needs_one_but_the_probes(house):
    paths = [*(await house.client.get("/openapi.json")).json()["paths"], "/health", "/nothing"]
    make_key(house.catalog)
    found = {}
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            url = path.replace("{version}", "1")
            answer = await house.client.request(method, url)
            if method == "HEAD":
                found[path, method] = answer.status_code, "invalid_api_key"
            elif path not in ("/livez", "/readyz"):
                found[path, method] = refused(answer)
                assert answer.headers["www-authenticate"] == "Bearer"
    for probe in ("/livez", "/readyz"):
        assert found.pop((probe, "HEAD")) == (200, "invalid_api_key")
        assert (await house.client.get(probe)).status_code == 200
    assert set(found.values()) == {(401, "invalid_api_key")}
    assert len(found) > 150
    assert house.inner.seen == []


async def test_a_path_in_disguise_needs_the_key_of_what_it_is(house, site):
    """Raw, as no client writes them."""
    headers = make_key(house.catalog)
    disguised = {}
    for path in (
        "/%61dmin/keys",
        "/admin/./keys",
        "/livez/../admin/keys",
        "//admin/keys",
        "/ADMIN/keys",
        "/v1/models/../../admin/keys",
        "/livez;/admin/keys",
        "/readyz%2f..%2fmetrics",
        "/metrics/",
        "/invocations",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/reset_prefix_cache",
    ):
        found = []
        for line in ("", f"Authorization: {headers['authorization']}\r\n"):
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\n{line}\r\n".encode()
            found.append((await (await site.connect(request)).answer()).status)
        disguised[path] = found
    for path in ("/%61dmin/keys", "/admin/./keys"):
        assert disguised.pop(path) == [401, 403]
    assert set(map(tuple, disguised.values())) == {(401, 404)}


async def test_no_body_is_read_without_a_valid_key(house):
    make_key(house.catalog)

    async def body():
        raise AssertionError("the body was read")
        yield b""

    for path in (*INFERENCE_PATHS, "/admin/adapters", "/admin/keys", "/v1/load_lora_adapter"):
        answer = await house.client.post(path, content=body(), headers=bearer(make_secret()))
        assert refused(answer) == (401, "invalid_api_key")


ODD = [
    "",
    "Bearer",
    "Bearer ",
    "Basic {}",
    "{}",
    "Token {}",
    "Bearer {}x",
    "Bearer x{}",
    "Bearer {}, Bearer {}",
    "Bearer {} {}",
    "Bearer lk-",
    "Bearer " + "é" * 50,
    "Bearer \x7f\x01",
    "Bearer " + "x" * 60_000,
    "Bearer " + " " * 1000,
    "Bearer None",
    "Bearer {prefix}",
]


async def test_an_odd_or_huge_authorization_header_is_a_401(house, site):
    headers = make_key(house.catalog)
    secret = headers["authorization"].split()[1]
    found = set()
    for odd in ODD:
        given = odd.replace("{prefix}", secret[:9]).replace("{}", secret)
        head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: {given}\r\n\r\n"
        answer = await (await site.connect(head.encode("latin-1", "replace"))).answer()
        found.add((answer.status, answer.code, odd in ("Bearer \x7f\x01",)))
    assert found <= {(401, "invalid_api_key", False), (400, "invalid_request", True)}
    two = [("authorization", f"Bearer {secret}")] * 2
    assert refused(await house.client.get("/v1/models", headers=two)) == (401, "invalid_api_key")
    for good in (f"bearer {secret}", f"BEARER   {secret} "):
        answer = await house.client.get("/v1/models", headers={"authorization": good})
        assert answer.status_code == 200


async def test_a_key_in_a_query_string_or_a_cookie_is_none(house):
    secret = make_key(house.catalog)["authorization"].split()[1]
    for name in ("key", "api_key", "api-key", "access_token", "authorization", "token"):
        for kind in ({"params": {name: secret}}, {"headers": {"cookie": f"{name}={secret}"}}):
            answer = await house.client.get("/v1/models", **kind)
            assert refused(answer) == (401, "invalid_api_key")
    for name in ("x-api-key", "api-key", "x-auth-token", "openai-api-key"):
        assert refused(await house.chat("red", headers={name: secret}))[0] == 401


async def test_anthropics_header_counts_where_its_clients_call(house):
    secret = make_key(house.catalog)["authorization"].split()[1]
    theirs = {"x-api-key": secret}
    body = {"model": "red", "messages": [], "max_tokens": 5}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        assert (await house.client.post(path, json=body, headers=theirs)).status_code == 200
        wrong = await house.client.post(path, json=body, headers={"x-api-key": "lk-x"})
        assert refused(wrong) == (401, "invalid_api_key")
    assert (await house.client.get("/v1/models", headers=theirs)).status_code == 200
    # One of both is wrong: the one that is not Anthropic's alone counts.
    both = theirs | bearer("lk-wrong")
    assert refused(await house.client.get("/v1/models", headers=both))[0] == 401


@pytest.mark.parametrize(
    ("scope", "opens"),
    [
        ("inference", {"/v1/models", "/v1/models/red", "/health", "/openapi.json"}),
        ("admin", {"/admin/adapters", "/admin/keys", "/admin/history", "/health", "/openapi.json"}),
        ("metrics", {"/metrics", "/health", "/openapi.json"}),
    ],
)
async def test_a_key_opens_the_paths_of_its_scope_only(house, scope, opens):
    headers = make_key(house.catalog, scopes=frozenset({scope}))
    paths = ["/v1/models", "/v1/models/red", "/metrics", "/admin/adapters", "/admin/keys"]
    found = set()
    for path in [*paths, "/admin/history", "/health", "/openapi.json"]:
        answer = await house.client.get(path, headers=headers)
        if answer.status_code == 200:
            found.add(path)
        else:
            assert refused(answer) == (403, "insufficient_scope")
            assert scope in error_of(answer)["message"]
    assert found == opens
    calls = [await house.client.post(path, json={}, headers=headers) for path in INFERENCE_PATHS]
    lora = [
        await house.client.post(f"/v1/{each}_lora_adapter", json={}, headers=headers)
        for each in ("load", "unload")
    ]
    assert {each.status_code == 403 for each in calls} == {scope != "inference"}
    assert {each.status_code == 403 for each in lora} == {scope != "admin"}


async def test_the_admin_token_stays_as_the_bootstrap(house):
    created = await house.client.post(
        "/admin/keys", json={"name": "root", "scopes": ["admin"]}, headers=bearer(TOKEN)
    )
    assert created.status_code == 201
    secret = created.json()["key"]
    for each in (TOKEN, secret):
        assert (await house.client.get("/admin/keys", headers=bearer(each))).status_code == 200
        assert (await house.client.get("/v1/models", headers=bearer(each))).status_code == 403
    (event,) = house.catalog.keys.list_events("root")
    assert event.actor.startswith("admin:")
    again = {"name": "team-b"}
    await house.client.post("/admin/keys", json=again, headers=bearer(secret))
    assert house.catalog.keys.list_events("team-b")[0].actor == "key:root"
    pin = await house.client.put(
        "/admin/adapters/red/weight", json={"weight": 2}, headers=bearer(secret)
    )
    assert pin.status_code == 200
    assert house.catalog.list_events("red", 1)[0].actor == "key:root"


# ---- keys that lapse


class Later(datetime):
    """An hour later than it is."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=1)


async def test_a_key_that_is_blocked_expired_revoked_or_rotated_opens_nothing(house, monkeypatch):
    keys = house.catalog.keys
    soon = datetime.now(UTC) + timedelta(minutes=30)
    headers = {
        "blocked": make_key(house.catalog, "blocked"),
        "expired": make_key(house.catalog, "expired", expires=soon),
        "revoked": make_key(house.catalog, "revoked"),
        "replaced": make_key(house.catalog, "replaced"),
    }
    answers = [await house.chat("red", headers=each) for each in headers.values()]
    assert {each.status_code for each in answers} == {200}
    keys.block("blocked", actor=ADMIN)
    keys.revoke("revoked", actor=ADMIN)
    _, secret = keys.rotate("replaced", overlap=timedelta(), actor=ADMIN)
    for module in ("record", "ring"):
        monkeypatch.setattr(f"adapters.keys.{module}.datetime", Later)
    for said, each in headers.items():
        answer = await house.chat("red", headers=each)
        assert refused(answer) == (401, "invalid_api_key")
        assert said in error_of(answer)["message"]
    assert (await house.chat("red", headers=bearer(secret))).status_code == 200
    keys.unblock("blocked", actor=ADMIN)
    assert (await house.chat("red", headers=headers["blocked"])).status_code == 200


async def test_a_rotated_secret_is_good_for_the_overlap(house):
    old = make_key(house.catalog)
    rotated = await house.client.post(
        "/admin/keys/team-a/rotate", json={"overlap_seconds": 3600}, headers=bearer(TOKEN)
    )
    for headers in (old, bearer(rotated.json()["key"])):
        assert (await house.chat("red", headers=headers)).status_code == 200


async def test_a_stream_ends_within_a_second_of_its_keys_revocation(house, site):
    """By a change through another process's catalog, with the follower that a server runs."""
    from adapters.catalog import Catalog

    headers = make_key(house.catalog)
    other = make_key(house.catalog, "team-b")
    house.inner.answer = Stream()
    follower = asyncio.create_task(house.parts.authenticator.run())
    body = {"model": "red", "messages": [], "stream": True}
    async with (
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as client,
        client.stream("POST", CHAT, json=body, headers=headers) as mine,
        client.stream("POST", CHAT, json=body, headers=other) as theirs,
    ):
        pieces, others = mine.aiter_bytes(), theirs.aiter_bytes()
        await anext(pieces)
        await anext(others)
        with Catalog.open(house.parts.settings.store) as elsewhere:
            elsewhere.keys.revoke("team-a", actor=ADMIN)
        revoked = time.monotonic()
        rest = b"".join([piece async for piece in pieces])
        assert time.monotonic() - revoked < SEEN_SECONDS
        assert await anext(others)
    follower.cancel()
    assert b'"code": "invalid_api_key"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    line = next(each for each in house.log if each["key"] == "team-a")
    assert (line["outcome"], line["error_code"]) == ("rejected", "invalid_api_key")


# ---- others' adapters


@pytest.fixture
def keyed(house: House) -> dict[str, str]:
    """A key of one who may use `red` and `red-two`, beside `blue`, `blue-two` and their aliases."""
    publish(house.catalog, "blue-two")
    publish(house.catalog, "blue", content="2", aliases=("stable", "canary"))
    house.catalog.split("blue", "half", {1: 50, 2: 50}, actor=ADMIN)
    publish(house.catalog, "red-two")
    return make_key(house.catalog)


def names_of(house: House, name: str) -> list[str]:
    digest = house.catalog.list_versions(name)[0].digest
    return [
        name,
        f"{name}@1",
        f"{name}@9",
        f"{name}@stable",
        f"{name}@canary",
        f"{name}@half",
        f"{name}@{digest[:13]}",
        f"{name}@{digest}",
        f"{BASE}:{name}",
        f"{BASE}:{name}@2",
        f"{BASE}:{name}@{digest[:20]}",
    ]


async def test_anothers_adapter_answers_as_one_that_does_not_exist(house, keyed):
    theirs = names_of(house, "blue")
    nobodys = [each.replace("blue", "bleu") for each in theirs]  # of the same length, not near
    for path in INFERENCE_PATHS:
        for hidden, absent in zip(theirs, nobodys, strict=True):
            answers = []
            for model in (hidden, absent):
                body = {"model": model, "messages": [], "prompt": "x", "user": "u"}
                answers.append(await house.client.post(path, json=body, headers=keyed))
            assert told(answers[0], hidden) == told(answers[1], absent)
            assert refused(answers[0]) == (404, "model_not_found")
    for hidden, absent in zip(theirs, nobodys, strict=True):
        shown = [
            await house.client.get(f"/v1/models/{model}", headers=keyed)
            for model in (hidden, absent)
        ]
        assert told(shown[0], hidden) == told(shown[1], absent)
        assert shown[0].status_code == 404
    assert house.inner.seen == []
    assert house.engine.asked == []
    assert {line["adapter"] for line in house.log} == {"_unresolved"}


async def test_a_guess_names_only_what_the_key_may_use(house, keyed):
    await house.chat("nobody", headers=keyed)  # the names are in memory now
    for near in ("blu", "bleue", "Blue", "blue-tow", "BLUE-TWO", "tinny"):
        said = error_of(await house.chat(near, headers=keyed))["message"]
        assert "Did you mean" not in said, near
        assert "blue" not in said.replace(near, "")
    said = error_of(await house.chat("red-tow", headers=keyed))["message"]
    assert "Did you mean `red-two`?" in said


async def test_an_ambiguous_digest_of_anothers_adapter_is_no_400(house, keyed):
    """Two versions whose digests begin alike: told only to who may use them."""
    digests = [version.digest for version in house.catalog.list_versions("blue")]
    assert len(digests) == 2
    answer = await house.chat("blue@sha256:" + "0" * 6, headers=keyed)
    assert refused(answer) == (404, "model_not_found")


async def test_the_base_needs_its_own_right(house, keyed):
    for model in (BASE, f"{BASE}:", f"{BASE}@1"):
        assert refused(await house.chat(model, headers=keyed)) == (404, "model_not_found")
    allowed = make_key(house.catalog, "with-base", adapters=(), base=True)
    assert (await house.chat(BASE, headers=allowed)).status_code == 200
    assert (await house.chat("red", headers=allowed)).status_code == 404


async def test_models_list_only_what_a_key_may_use(house, keyed):
    async def listed(headers):
        answer = await house.client.get("/v1/models", headers=headers)
        return [each["id"] for each in answer.json()["data"]]

    assert await listed(keyed) == ["red", "red-two"]
    every = make_key(house.catalog, "every", adapters=("*",), base=True)
    assert await listed(every) == [BASE, "blue", "blue-two", "green", "red", "red-two"]
    nothing = make_key(house.catalog, "nothing", adapters=())
    assert await listed(nothing) == []
    publish(house.catalog, "red-three")
    assert await listed(keyed) == ["red", "red-three", "red-two"]
    assert (await house.client.get("/v1/models/red@1", headers=keyed)).json()["id"] == "red@1"


async def test_vllms_headers_choose_nothing(house, keyed):
    theirs = {
        "x-amzn-sagemaker-adapter-identifier": "blue",
        "x-amzn-sagemaker-adapter-alias": "blue",
        "x-vllm-priority": "-10",
        "x-data-parallel-rank": "0",
        "x-lorry-adapter": "blue@1",
        "x-lorry-key": "root",
    }
    answer = await house.chat("red", headers=keyed | theirs)
    assert answer.headers["x-lorry-adapter"] == "red@1"
    passed = {name for name, _ in house.inner.seen[0][0]["headers"]}
    assert not passed & {name.encode() for name in list(theirs)[:4]}


async def test_the_time_of_an_answer_tells_nothing(house, keyed):
    """Interleaved, by the median: another's adapter, hot and cold, and a name that nobody has."""
    await house.parts.authenticator.look()
    names = {"hidden": "blue@1", "absent": "nope@1"}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(150):
        for kind, model in names.items():
            began = time.perf_counter()
            answer = await house.chat(model, headers=keyed)
            times[kind].append(time.perf_counter() - began)
            assert answer.status_code == 404
    hidden, absent = (statistics.median(times[kind]) for kind in names)
    spread = statistics.stdev(sorted(times["absent"])[:100])
    assert abs(hidden - absent) < max(0.1 * absent, spread)


async def test_the_catalog_is_not_asked_for_what_a_key_may_not_use(house, keyed, monkeypatch):
    """Why the time can't tell: the same look-up, of a name that nobody has."""
    asked = []
    remembered = house.catalog.remembered

    def noting(reference, side=None):
        asked.append(str(reference))
        return remembered(reference, side)

    monkeypatch.setattr(house.catalog, "remembered", noting)
    for model in ("blue@2", "nope@2"):
        await house.chat(model, headers=keyed)
    assert asked == ["@2", "@2"]


# ---- a catalog that can't be read


async def test_known_keys_go_on_and_unknown_ones_are_503_without_the_catalog(house, monkeypatch):
    known = make_key(house.catalog)
    assert (await house.chat("red", headers=known)).status_code == 200

    def fail():
        raise CatalogUnreadable("gone", "bring it back")

    monkeypatch.setattr(house.catalog.keys, "remembered", lambda: None)
    monkeypatch.setattr(house.catalog.keys, "ring", fail)
    house.parts.catalog_watch.problem = CatalogUnreadable("gone", "bring it back")
    assert (await house.chat("red", headers=known)).status_code == 200
    new = await house.chat("red", headers=bearer(make_secret()))
    assert refused(new) == (503, "catalog_unreadable")
    assert new.headers["retry-after"] == "5"
    # Nothing at all: no key, an empty one.
    assert refused(await house.chat("red")) == (401, "invalid_api_key")


async def test_keys_that_were_never_read_open_nothing(house, monkeypatch):
    def fail():
        raise CatalogUnreadable("gone", "bring it back")

    monkeypatch.setattr(house.catalog.keys, "ring", fail)
    for headers in ({}, bearer(make_secret())):
        assert refused(await house.chat("red", headers=headers)) == (503, "catalog_unreadable")
    assert (await house.client.get("/livez")).status_code == 200
    assert (await house.client.get("/admin/history", headers=bearer(TOKEN))).status_code == 200


async def test_a_server_that_had_keys_never_opens_again(house, monkeypatch):
    """An old copy of the catalog, without its keys, in the place of the real one."""
    make_key(house.catalog)
    assert (await house.chat("red")).status_code == 401
    empty = replace(house.catalog.keys.ring(), secrets={})
    monkeypatch.setattr(house.catalog.keys, "remembered", lambda: empty)
    assert refused(await house.chat("red")) == (401, "invalid_api_key")


# ---- what is written


async def test_no_secret_is_in_log_span_metric_or_error(house, caplog):
    headers = make_key(house.catalog)
    secret = headers["authorization"].split()[1]
    wrong = make_secret()
    await house.chat("red", headers=headers)
    await house.chat("red", headers=bearer(wrong))
    await house.client.get(f"/v1/models?key={secret}", headers=bearer(wrong))
    await house.client.get("/admin/keys", headers=headers)
    house.tracing.provider.force_flush()
    metrics = make_key(house.catalog, "scraper", scopes=frozenset({"metrics"}))
    written = [
        json.dumps(house.log),
        *(str(span.attributes) for span in house.spans.get_finished_spans()),
        (await house.client.get("/metrics", headers=metrics)).text,
        caplog.text,
        str([event.as_json() for event in house.catalog.keys.list_events()]),
        str(house.catalog.keys.all()),
    ]
    for each in written:
        assert secret[9:] not in each
        assert wrong[9:] not in each
    assert house.log[0]["key"] == "team-a"
    assert house.log[1]["key"] is None
    spans = [s for s in house.spans.get_finished_spans() if s.kind.name == "SERVER"]
    assert spans[0].attributes["lorry.key"] == "team-a"


async def test_the_open_state_names_no_file_where_keys_are_in_force(house):
    headers = make_key(house.catalog)
    house.lifecycle.impair("catalog_unreadable", "no such file /secret/catalog.db")
    await house.chat("red", headers=headers)
    open_ = (await house.client.get("/readyz")).json()
    known = (await house.client.get("/health", headers=headers)).json()
    assert (open_["stage"], open_["reason"]) == ("impaired", "catalog_unreadable")
    assert "/secret/catalog.db" in known["stage"]


async def test_a_failing_catalog_names_no_host_to_a_key_for_inference(house, monkeypatch):
    headers = make_key(house.catalog)

    def fail(*_: Any) -> None:
        raise CatalogUnreadable("sqlite:////secret/catalog.usage.db: damaged", "look at the disk")

    monkeypatch.setattr(house.catalog.usage, "report", fail)
    answer = await house.client.get("/v1/usage", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "catalog_unreadable")
    assert "secret" not in answer.text
