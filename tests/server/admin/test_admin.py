"""The admin API over the product's own catalog and residency, with a stand-in engine."""

from __future__ import annotations

import asyncio
import hashlib
import json

import msgspec
import pytest
from evaluated import evaluation
from standin_server import BASE, TOKEN, publish

from server.admin import publishing
from server.engine.interface import EngineRefusal, EngineSlow
from server.errors import InvalidRequest
from server.naming import ModelNames

BEARER = {"authorization": f"Bearer {TOKEN}"}
ACTOR = f"admin:{hashlib.sha256(TOKEN.encode()).hexdigest()[:8]}"


@pytest.fixture
def ask(house):
    async def ask(method, path, status=200, code=None, **kwargs):
        given = {"headers": BEARER} | kwargs
        response = await house.client.request(method, f"/admin/adapters{path}", **given)
        assert response.status_code == status, response.text
        if code is not None:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code
        return response.json()

    return ask


async def test_the_list_has_the_catalogs_facts_and_the_residency(house, ask):
    newer = publish(house.catalog, "red", content="newer")
    house.catalog.split("red", "canary", {1: 90, 2: 10}, actor="test")
    await house.chat("red")
    listed = await ask("GET", "")

    assert [each["name"] for each in listed["data"]] == ["blue", "green", "red"]
    red = listed["data"][2]
    assert red == await ask("GET", "/red")
    assert red["aliases"][0] == {
        "name": "red",
        "alias": "canary",
        "targets": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}],
    }
    first, second = red["versions"]
    assert second["digest"] == newer.digest
    assert (second["rank"], second["pinned"], second["evaluations"]) == (8, False, [])
    assert second["residency"] == {"loading": False, "host": True, "device": True}
    assert second["leases"] == 0
    assert second["last_used"]
    assert first["residency"] == {"loading": False, "host": False, "device": False}
    assert first["last_used"] is None
    await ask("GET", "/nobody", 404, "adapter_not_found")


async def test_the_list_shows_loads_and_leases(house, ask):
    version = publish(house.catalog, "red", content="other")
    house.engine.gate = asyncio.Event()
    loading = asyncio.create_task(house.residency.load(version))
    await asyncio.sleep(0)

    async def shown():
        return (await ask("GET", "/red"))["versions"][1]

    facts = await shown()
    assert facts["size_bytes"] == version.size_bytes > 0
    assert facts["residency"]["loading"] is True
    house.engine.gate.set()
    await loading
    assert (await shown())["residency"]["loading"] is False
    async with house.residency.lease(version, None), house.residency.lease(version, None):
        assert (await shown())["leases"] == 2
    assert (await shown())["leases"] == 0


async def test_an_evaluation_is_recorded_and_shown_with_its_version(house, ask):
    body = json.loads(msgspec.json.encode(evaluation(0.8)))
    recorded = await ask("POST", "/red/versions/1/evaluations", 201, json=body)
    assert recorded["actor"] == ACTOR
    assert recorded | body == recorded
    red = await ask("GET", "/red")
    assert red["versions"][0]["evaluations"] == [recorded]
    listed = {each["name"]: each["versions"] for each in (await ask("GET", ""))["data"]}
    assert listed["red"][0]["evaluations"] == [recorded]
    assert listed["blue"][0]["evaluations"] == []
    event = (await ask("GET", "/red/history"))["data"][-1]
    assert (event["action"], event["detail"]["score"]) == ("evaluated", 0.8)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"examples": 0}, "invalid_request"),
        ({"data_digest": "md5:1"}, "invalid_request"),
        ({"comparisons": []}, "invalid_request"),
        ({"by": "guess"}, "invalid_request"),
        ({"extra": 1}, "invalid_request"),
        ({"score": {"mean": 2, "low": 0, "high": 1}}, "evaluation_invalid"),
        ({"metric": "two\nlines"}, "evaluation_invalid"),
    ],
)
async def test_figures_that_make_no_sense_are_a_400(ask, wrong, code):
    body = msgspec.to_builtins(evaluation(0.8)) | wrong
    await ask("POST", "/red/versions/1/evaluations", 400, code, json=body)
    assert (await ask("GET", "/red"))["versions"][0]["evaluations"] == []


async def test_the_gate_of_an_alias_refuses_with_both_figures(house, ask):
    publish(house.catalog, "red", content="newer", aliases=())
    stable, wanted = "/red/aliases/stable", {"version": 2, "gate": "exact-match"}
    await ask("PUT", stable, 409, "gate_refused", json=wanted)
    for version, score in ((1, 0.8), (2, 0.7)):
        body = msgspec.to_builtins(evaluation(score))
        await ask("POST", f"/red/versions/{version}/evaluations", 201, json=body)
    said = (await ask("PUT", stable, 409, "gate_refused", json=wanted))["error"]["message"]
    assert "red@2 has 0.7000" in said
    assert "the 0.8000 of red@1" in said
    moved = await ask("PUT", stable, json=wanted | {"force": True})
    assert moved["targets"] == [{"version": 2, "weight": 1}]
    detail = (await ask("GET", "/red/history"))["data"][-1]["detail"]
    assert (detail["forced"], detail["gate"]) == (True, "exact-match")


async def test_a_gate_of_a_name_holds_for_aliases_and_publications(house, ask):
    publish(house.catalog, "red", content="newer", aliases=())
    set_to = {"name": "red", "gate": "exact-match"}
    assert await ask("PUT", "/red/gate", json={"metric": "exact-match"}) == set_to
    assert (await ask("GET", "/red"))["gate"] == "exact-match"
    await ask("PUT", "/red/aliases/canary", 409, "gate_refused", json={"version": 2})
    split = {"split": {"1": 1, "2": 1}}
    await ask("PUT", "/red/aliases/stable", 409, "gate_refused", json=split)
    await ask("PUT", "/red/gate", 400, "invalid_request", json={})
    await ask("PUT", "/nobody/gate", 404, "adapter_not_found", json={"metric": "x"})
    await ask("PUT", "/red/gate", json={"metric": None})
    await ask("PUT", "/red/aliases/canary", json={"version": 2})
    actions = [each["action"] for each in (await ask("GET", "/red/history"))["data"]]
    assert actions[-3:] == ["gate_changed", "gate_changed", "alias_moved"]


async def test_a_sum_that_cannot_be_composed_is_refused_with_its_reason(house, ask):
    for body, code in (
        ({"sum": "red"}, "sum_invalid"),
        ({"sum": "red*9"}, "sum_invalid"),
        ({"sum": "red*0.5", "aliases": ["7"]}, "bad_name"),
        ({"sum": ""}, "invalid_request"),
        ({"sum": "x" * 3000}, "invalid_request"),
        ({"sum": "red*0.5", "scale": 2}, "invalid_request"),
    ):
        await ask("POST", "/both/compose", 400, code, json=body)
    await ask("POST", f"/{BASE}/compose", 400, "bad_name", json={"sum": "red*0.5"})
    await ask("POST", "/both/compose", 404, "adapter_not_found", json={"sum": "red*0.5+nobody"})
    # The stand-in's versions have no files.
    await ask("POST", "/both/compose", 503, "object_missing", json={"sum": "red*0.5"})


async def test_a_weight_is_set_for_the_name_and_holds_from_the_next_call(house, ask):
    publish(house.catalog, "red", content="newer")
    assert await ask("PUT", "/red/weight", json={"weight": 2}) == {"name": "red", "weight": 2.0}
    red = await ask("GET", "/red")
    assert [red["weight"], *(each["weight"] for each in red["versions"])] == [2.0] * 3
    assert [each["weight"] for each in (await ask("GET", ""))["data"]] == [1.0, 1.0, 2.0]
    assert (await ask("GET", "/red/history"))["data"][-1]["detail"] == {"from": 1.0, "to": 2.0}
    version = await ModelNames(BASE, house.catalog).resolve("red@1")
    assert version is not None
    assert version.weight == 2.0


async def test_an_alias_is_pointed_split_rolled_back_and_deleted_each_with_its_actor(house, ask):
    publish(house.catalog, "red", content="newer")
    stable = "/red/aliases/stable"

    async def served():
        return (await house.chat("red")).headers.get("x-lorry-adapter")

    assert await served() == "red@2"
    await ask("PUT", stable, json={"version": 1})
    assert await served() == "red@1"
    await ask("POST", f"{stable}/rollback")
    assert await served() == "red@2"
    await ask("POST", f"{stable}/rollback", json={"to": 1})
    assert await served() == "red@1"
    split = await ask("PUT", stable, json={"split": {"1": 0, "2": 10}})
    assert split["targets"][0]["version"] == 2
    await ask("DELETE", stable)
    assert (await house.chat("red")).status_code == 404
    assert (await house.chat("red@2")).status_code == 200

    events = (await ask("GET", "/red/history"))["data"]
    assert {event["actor"] for event in events} == {"test", ACTOR}
    assert len(events) >= 7
    assert len((await ask("GET", "/red/history?limit=2"))["data"]) == 2
    everything = (await house.client.get("/admin/history", headers=BEARER)).json()["data"]
    assert {event["name"] for event in everything} == {"red", "green", "blue"}
    assert [event for event in everything if event["name"] == "red"] == events


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/red/aliases/stable", {}, 400, "invalid_request"),
        ("PUT", "/red/aliases/stable", {"version": 1, "split": {"1": 1}}, 400, "invalid_request"),
        ("PUT", "/red/aliases/stable", {"version": "x"}, 400, "invalid_request"),
        ("PUT", "/red/aliases/stable", {"version": 1, "weight": 2}, 400, "invalid_request"),
        ("PUT", "/red/aliases/stable", {"split": {"1": -1}}, 400, "invalid_request"),
        ("PUT", "/red/aliases/stable", {"split": {}}, 400, "invalid_request"),
        ("PUT", "/red/aliases/stable", {"split": {"1": 0}}, 400, "split_invalid"),
        ("PUT", "/red/aliases/stable", {"version": 9}, 404, "adapter_not_found"),
        ("PUT", "/red/aliases/12", {"version": 1}, 400, "bad_name"),
        ("PUT", "/red/weight", {"weight": 0}, 400, "invalid_request"),
        ("PUT", "/red/weight", {"weight": 100.5}, 400, "invalid_request"),
        ("PUT", "/nobody/weight", {"weight": 2}, 404, "adapter_not_found"),
        ("PUT", "/red/aliases/a,b", {"version": 1}, 400, "bad_name"),
        ("PUT", f"/red/aliases/{'a' * 65}", {"version": 1}, 400, "invalid_request"),
        ("DELETE", "/red/aliases/nightly", None, 404, "alias_not_found"),
        ("POST", "/red/aliases/stable/rollback", None, 409, "nothing_to_roll_back"),
        ("DELETE", "/red/versions/1", None, 409, "version_in_use"),
        ("DELETE", "/red/versions/9", None, 404, "adapter_not_found"),
        ("DELETE", f"/red/versions/{10**30}", None, 400, "invalid_request"),
        ("POST", "/nobody/load", None, 404, "adapter_not_found"),
        ("POST", "/nobody@@/load", None, 400, "bad_reference"),
        ("POST", "/red/versions/7/pin", None, 404, "adapter_not_found"),
        ("GET", "/red/history?limit=0", None, 400, "invalid_request"),
        ("POST", "", {"name": "x", "source": "s3://bucket/x"}, 400, "source_not_allowed"),
        ("POST", "", {"name": "x", "source": "/etc"}, 400, "source_not_allowed"),
        ("POST", "", {"name": "x", "source": "../store"}, 400, "source_not_allowed"),
        ("POST", "", {"name": "x", "source": "file:///etc"}, 400, "source_not_allowed"),
        ("POST", "", {"name": "x", "source": "a\0b"}, 400, "invalid_request"),
        ("POST", "", {"name": "x", "source": "x", "path": "y"}, 400, "invalid_request"),
        ("POST", "", {"name": "a,b", "source": "x"}, 400, "bad_name"),
        ("POST", "", {"name": "text", "source": "x"}, 400, "bad_name"),
        ("POST", "", {"name": BASE, "source": "x"}, 400, "bad_name"),  # the base's own
        ("GET", "/nobody/history", None, 404, "adapter_not_found"),
        ("POST", "", None, 400, "invalid_request"),
    ],
)
async def test_an_invalid_request_is_refused_with_its_own_code(
    ask, method, path, body, status, code
):
    await ask(method, path, status, code, **({} if body is None else {"json": body}))


async def test_a_body_without_a_json_content_type_gets_a_hint(ask):
    headers = BEARER | {"content-type": "text/plain"}
    given = {"headers": headers, "content": b'{"version": 1}'}
    refused = await ask("PUT", "/red/aliases/stable", 400, "invalid_request", **given)
    assert "Content-Type: application/json" in refused["error"]["message"]
    refused = await ask("POST", "", 400, "invalid_request", content=b"{")
    assert "not valid: body: Invalid JSON" in refused["error"]["message"]


async def test_the_content_type_of_a_form_is_case_insensitive(ask):
    headers = BEARER | {"content-type": "Multipart/Form-Data; boundary=x"}
    refused = await ask("POST", "", 400, headers=headers, content=b"--x--\r\n")
    assert "form" in refused["error"]["message"]


async def test_load_and_unload_move_a_version_in_and_out_of_the_engine(house, ask):
    assert (await ask("POST", "/red/load"))["data"] == ["red@1"]
    assert list(house.engine.loaded) == [1]
    call = await house.chat("red")
    assert call.status_code == 200
    assert house.log[-1]["cold_start"] is False
    assert (await ask("POST", "/red@1/unload"))["data"] == ["red@1"]
    assert (house.engine.loaded, house.engine.removed) == ({}, [1])
    publish(house.catalog, "red", content="newer")
    house.catalog.split("red", "both", {1: 1, 2: 1}, actor="test")
    assert (await ask("POST", "/red@both/load"))["data"] == ["red@1", "red@2"]


async def test_a_pin_loads_and_one_place_stays_for_the_others(house, ask):
    pinned = await ask("POST", "/red/versions/1/pin")
    assert pinned["pinned"] is True
    assert pinned["residency"]["host"] is True
    await ask("POST", "/red/versions/1/pin")
    await ask("POST", "/green/versions/1/pin", 409, "pins_exceed_capacity")
    await ask("POST", "/red/unload", 409, "adapter_in_use")
    await ask("DELETE", "/red/versions/1", 409, "version_in_use")
    await ask("DELETE", "/red/versions/1/pin")
    await ask("POST", "/green/versions/1/pin")


async def test_a_pin_takes_effect_before_its_answer(house, ask):
    await ask("POST", "/red/versions/1/pin")
    for model in ("green", "blue", "green", "blue"):
        assert (await house.chat(model)).status_code == 200
    assert (await ask("GET", "/red"))["versions"][0]["residency"]["host"] is True


async def test_of_two_concurrent_pins_one_gets_the_last_place(house, ask):
    pins = [f"/admin/adapters/{name}/versions/1/pin" for name in ("red", "green")]
    answers = await asyncio.gather(*(house.client.post(pin, headers=BEARER) for pin in pins))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert len(house.catalog.pins()) == 1


async def test_a_change_succeeds_even_if_the_engine_does_not_answer(house, ask, monkeypatch):
    async def held_adapters(within):
        raise EngineSlow("the engine did not answer in time")

    monkeypatch.setattr(house.engine, "held_adapters", held_adapters)
    assert (await ask("POST", "/red/versions/1/pin"))["pinned"] is True
    await ask("GET", "", 503, "engine_slow")


async def test_a_removed_version_leaves_the_engine_and_can_no_longer_be_called(house, ask):
    publish(house.catalog, "red", content="newer")
    await ask("POST", "/red@1/load")
    gone = await ask("DELETE", "/red/versions/1")
    assert gone == {"name": "red", "version": 1, "deleted": True, "unloaded": True}
    assert house.engine.loaded == {}
    assert (await house.chat("red@1")).status_code == 404
    assert (await house.chat("red")).headers["x-lorry-adapter"] == "red@2"


async def test_a_body_without_an_end_is_cut_off(ask):
    large = b'{"source": "' + b"x" * 100_000 + b'"}'
    await ask("POST", "", 413, "request_too_large", content=large)
    files = [("file", ("adapter_model.safetensors", b"x" * 1_100_000))]
    await ask("POST", "", 413, "request_too_large", data={"name": "x"}, files=files)


@pytest.mark.parametrize("name", ["../escape", "", ".hidden", "a/b", "x" * 200])
async def test_an_uploaded_file_stays_in_its_folder(ask, name):
    files = [("file", (name, b"x"))]
    refused = await ask("POST", "", 400, data={"name": "x"}, files=files)
    assert refused["error"]["code"] in ("bad_file_name", "invalid_request")


async def test_unfinished_publications_are_no_source(house, tmp_path):
    wide = house.parts.settings.model_copy(update={"admin_source_root": tmp_path})
    publisher = publishing.Publisher(wide, house.catalog)
    assert publisher._locate("elsewhere") == tmp_path / "elsewhere"
    for source in ("store/tmp/x", "store/tmp", "elsewhere/../store/tmp/x"):
        with pytest.raises(InvalidRequest) as refused:
            publisher._locate(source)
        assert refused.value.code == "source_not_allowed"


async def test_vllms_two_paths_publish_withdraw_and_refuse_load_inplace(house):
    async def post(path, **body):
        return await house.client.post(f"/v1/{path}", json=body, headers=BEARER)

    inplace = {"lora_name": "x", "lora_path": "x", "load_inplace": True}
    refused = await post("load_lora_adapter", **inplace)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported")
    outside = await post("load_lora_adapter", lora_name="x", lora_path="/etc")
    assert outside.json()["error"]["code"] == "source_not_allowed"

    house.catalog.pin("blue", 1, actor="test")
    await house.chat("blue")
    assert (await post("unload_lora_adapter", lora_name="blue")).status_code == 200
    assert len(house.engine.loaded) == 1  # pinned
    house.catalog.split("blue", "stable", {1: 1}, actor="test")
    house.catalog.unpin("blue", 1, actor="test")
    await house.residency.unload(house.catalog.list_versions("blue")[0])

    await house.chat("red")
    done = await post("unload_lora_adapter", lora_name="red")
    assert (done.status_code, done.text[:7]) == (200, "Success")
    assert house.engine.loaded == {}
    assert (await house.chat("red")).status_code == 404
    listed = (await house.client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["tiny", "blue", "green"]
    assert (await house.chat("red@1")).status_code == 200
    assert (await post("unload_lora_adapter", lora_name="red")).status_code == 404


async def test_vllms_load_does_not_move_stable_to_a_version_that_can_not_load(house, monkeypatch):
    def publish_now(place, name, *, aliases, **_):
        return publish(house.catalog, name, content=str(place), aliases=tuple(aliases))

    monkeypatch.setattr(publishing, "publish", publish_now)

    async def load(path):
        body = {"lora_name": "red", "lora_path": path}
        return await house.client.post("/v1/load_lora_adapter", json=body, headers=BEARER)

    house.engine.failures = [EngineRefusal("no")]
    assert (await load("bad")).status_code == 422
    assert (await house.chat("red")).headers["x-lorry-adapter"] == "red@1"
    assert (await load("good")).status_code == 200
    assert (await house.chat("red")).headers["x-lorry-adapter"] == "red@3"


async def test_a_split_is_listed_among_the_models_and_keeps_each_user_on_one_side(house):
    publish(house.catalog, "red", content="newer")
    house.catalog.split("red", "stable", {1: 30, 2: 70}, actor="test")
    card = (await house.client.get("/v1/models")).json()["data"][3]
    assert (card["version"], card["split"]) == (2, {"1": 30, "2": 70})

    async def served(body, **headers):
        body = {"model": "red", "messages": []} | body
        response = await house.client.post("/v1/chat/completions", json=body, headers=headers)
        assert response.json()["model"] == response.headers["x-lorry-adapter"]
        return response.headers["x-lorry-adapter"]

    for field in ({"user": "u{}"}, {"x-session-id": "s{}"}, {"x-request-id": "r{}"}):
        (key, form), sides = *field.items(), set()
        for number in range(12):
            value = form.format(number)
            call = ({key: value}, {}) if key == "user" else ({}, {key: value})
            first, second = [await served(call[0], **call[1]) for _ in range(2)]
            assert first == second
            sides.add(first)
        assert sides == {"red@1", "red@2"}
    # The user counts before the session.
    assert len({await served({"user": "u"}, **{"x-session-id": f"s{n}"}) for n in range(12)}) == 1
    assert {line["served_model"] for line in house.log} == {"red@1", "red@2"}


async def test_adapters_are_listed_by_pages(house, ask):
    for number in range(7):
        publish(house.catalog, f"a{number}")
    publish(house.catalog, "a3", content="newer", aliases=("canary",))
    names, after = [], ""
    while True:
        page = await ask("GET", f"?limit=3{after}")
        assert page["object"] == "list"
        found = [each["name"] for each in page["data"]]
        assert (page["first_id"], page["last_id"]) == (found[0], found[-1])
        names += found
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert names == [*(f"a{number}" for number in range(7)), "blue", "green", "red"]
    (page,) = [(await ask("GET", "?limit=1&after=a2"))["data"]]
    assert [each["version"] for each in page[0]["versions"]] == [1, 2]
    assert {each["alias"] for each in page[0]["aliases"]} == {"stable", "canary"}
    assert page[0] == await ask("GET", "/a3")


async def test_a_page_after_the_last_adapter_is_empty(ask):
    page = await ask("GET", "?after=zzz")
    assert page == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert len((await ask("GET", "?limit=1000"))["data"]) == 3


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after=", f"after={'x' * 200}"]
)
async def test_a_page_that_makes_no_sense_is_a_400(ask, query):
    await ask("GET", f"?{query}", 400, "invalid_request")
