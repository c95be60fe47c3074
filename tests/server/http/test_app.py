"""Our own routes: health, models, metrics, the schema."""

from __future__ import annotations

import json

import jsonschema
import pytest
from standin_server import TOKEN, publish

from server.lifecycle import Phase
from server.paths import INFERENCE_PATHS


async def test_livez_and_readyz_answer_by_phase(house):
    async def codes():
        return [(await house.client.get(f"/{p}")).status_code for p in ("livez", "readyz")]

    assert await codes() == [200, 200]
    house.lifecycle.phase = Phase.STARTING
    house.lifecycle.stage = "importing vLLM"
    assert await codes() == [200, 503]
    assert (await house.client.get("/readyz")).json()["stage"] == "importing vLLM"
    house.lifecycle.advance(Phase.DRAINING)
    assert await codes() == [200, 503]
    house.lifecycle.advance(Phase.DEAD)
    house.lifecycle.advance(Phase.READY)  # DEAD is final
    assert await codes() == [503, 503]


async def test_a_hindrance_makes_a_ready_server_unready_but_its_calls_are_answered(house):
    house.lifecycle.impair("catalog_unreadable", "the catalog is gone")
    house.lifecycle.impair("engine_stalled", "no step for 20 s")
    answer = await house.client.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {
        "status": "impaired",
        "stage": "the catalog is gone; no step for 20 s",
        "reason": "catalog_unreadable",
        "in_flight": 0,
        "waiting": 0,
        "capacity": 4,
        "replica": "left",
    }
    assert (await house.client.get("/livez")).status_code == 200
    assert (await house.chat()).status_code == 200
    house.lifecycle.restore("catalog_unreadable")
    assert (await house.client.get("/readyz")).json()["reason"] == "engine_stalled"
    house.lifecycle.restore("engine_stalled")
    house.lifecycle.restore("never_there")
    assert (await house.client.get("/readyz")).json()["status"] == "ready"


async def test_models_list_the_base_and_each_adapter_with_digest_and_parent(house):
    newer = publish(house.catalog, "red", content="newer")
    cards = (await house.client.get("/v1/models")).json()["data"]

    assert [card["id"] for card in cards] == ["tiny", "blue", "green", "red"]
    assert cards[0]["parent"] is None
    assert (cards[3]["root"], cards[3]["parent"]) == (newer.digest, "tiny")


async def test_the_list_of_models_follows_every_change(house):
    async def listed():
        answer = await house.client.get("/v1/models")
        assert answer.headers["content-type"] == "application/json"
        return [(card["id"], card.get("version")) for card in answer.json()["data"]]

    before = await listed()
    assert await listed() == before == [("tiny", None), ("blue", 1), ("green", 1), ("red", 1)]
    publish(house.catalog, "red", content="newer")
    assert await listed() == [*before[:3], ("red", 2)]
    house.catalog.drop_alias("blue", "stable", actor="test")
    assert await listed() == [before[0], before[2], ("red", 2)]


async def test_a_model_is_found_by_every_name_that_a_request_can_use(house):
    models = ["tiny", "red", "red@1", "tiny:red"]
    answers = [await house.client.get(f"/v1/models/{model}") for model in models]

    assert [answer.status_code for answer in answers] == [200] * len(models)
    assert [answer.json()["id"] for answer in answers] == models


async def test_an_unknown_model_is_openais_404(house):
    models = ["nobody", "red@7", "a/b/c", "%2e%2e%2fx"]
    answers = [await house.client.get(f"/v1/models/{model}") for model in models]

    found = {
        model: (answer.status_code, answer.json()["error"]["code"])
        for model, answer in zip(models, answers, strict=True)
    }
    assert found == dict.fromkeys(models, (404, "model_not_found"))


async def test_a_misspelt_model_is_a_404_that_names_the_nearest_one(house):
    publish(house.catalog, "support-tone")
    for model, meant in {
        "support-tnoe": "support-tone",
        "tiny:Support_Tone@2": "support-tone",
        "tinny": "tiny",
        "gren": "green",
        "red@7": None,
        "nothing-like-it": None,
        "x" * 400: None,
    }.items():
        answer = await house.chat(model)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "model_not_found")
        assert (f"Did you mean `{meant}`?" in error["message"]) == (meant is not None), error
        assert ("Did you mean" in error["message"]) == (meant is not None), error


async def test_metrics_come_as_text_or_as_openmetrics_with_trace_exemplars(house):
    await house.chat("red")
    plain = await house.client.get("/metrics")
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    rich = await house.client.get("/metrics", headers=accept)

    assert plain.headers["content-type"].startswith("text/plain")
    assert rich.headers["content-type"].startswith("application/openmetrics-text")
    assert 'lorry_requests_total{adapter="red"' in plain.text
    assert f'# {{trace_id="{house.log[0]["trace_id"]}"}}' in rich.text


async def test_the_schema_names_every_path_that_can_be_called(house):
    paths = (await house.client.get("/openapi.json")).json()["paths"]

    assert set(INFERENCE_PATHS) <= set(paths)
    assert {"/livez", "/readyz", "/metrics", "/v1/models"} <= set(paths)


async def test_the_schema_has_the_errors_that_callers_get(house):
    schema = (await house.client.get("/openapi.json")).json()
    error = schema["components"]["schemas"]["Error"]
    admin = {"authorization": f"Bearer {TOKEN}"}
    pin = "/admin/adapters/{name}/versions/{version}/pin"
    asked = [
        (400, "post", "/v1/completions", {}, {"content": b"{"}),
        (404, "post", "/v1/completions", {}, {"json": {"model": "nobody"}}),
        (413, "post", "/tokenize", {}, {"content": b"x" * 60_000}),
        (404, "get", "/v1/models/{model}", {"model": "nobody"}, {}),
        (401, "get", "/admin/adapters", {}, {}),
        (400, "get", "/admin/adapters", {}, {"headers": admin, "params": {"limit": 0}}),
        (404, "post", pin, {"name": "red", "version": 9}, {"headers": admin}),
        (400, "put", "/admin/adapters/{name}/weight", {"name": "red"}, {"headers": admin}),
    ]
    for status, method, path, parameters, given in asked:
        answer = await house.client.request(method, path.format(**parameters), **given)
        assert answer.status_code == status, (path, answer.text)
        form = schema["paths"][path][method]["responses"][str(status)]["content"][
            "application/json"
        ]["schema"]
        assert form == {"$ref": "#/components/schemas/Error"}
        jsonschema.validate(answer.json(), error)
    assert "HTTPValidationError" not in json.dumps(schema)
    (deadline,) = schema["paths"]["/v1/completions"]["post"]["parameters"]
    assert deadline["name"] == "x-request-timeout"


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nothing", 404), ("POST", "/v1/models", 405)]
)
async def test_unknown_paths_and_methods_use_openais_envelope(house, method, path, code):
    response = await house.client.request(method, path)

    assert response.status_code == code
    assert response.json()["error"]["type"] == "invalid_request_error"
