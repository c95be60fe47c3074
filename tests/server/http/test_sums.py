"""A sum of adapters is called by its text, and is one version in every record of the call."""

from __future__ import annotations

import hashlib

import pytest
from api_keys import make_key
from standin_server import TOKEN, publish, send_json

from server.call import current_call
from server.errors import SumRefused
from server.naming import ModelNames

HALF = "green@1*0.5+red@1*0.7"


async def test_headers_body_span_log_and_metrics_carry_the_canonical_form(house):
    answer = await house.chat(" red * .70 + green@stable*0.5")
    assert answer.status_code == 200
    assert answer.json()["model"] == answer.headers["x-lorry-adapter"] == HALF
    parts = {name: house.catalog.list_versions(name)[0] for name in ("green", "red")}
    lines = sorted([f"{parts['green'].digest}*0.5\n", f"{parts['red'].digest}*0.7\n"])
    digest = f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    assert answer.headers["x-lorry-adapter-digest"] == digest

    house.tracing.provider.force_flush()
    span = next(s for s in house.spans.get_finished_spans() if s.kind.name == "SERVER")
    assert span.name == "chat  red * .70 + green@stable*0.5"
    told = dict(span.attributes)
    assert told["gen_ai.response.model"] == told["lorry.adapter.name"] == HALF
    assert "lorry.adapter.version" not in told
    assert (told["lorry.adapter.digest"], told["lorry.adapter.rank"]) == (digest, 16)
    assert told["lorry.adapter.parts"] == ("green@1", "red@1")
    assert told["lorry.adapter.part_digests"] == (parts["green"].digest, parts["red"].digest)
    assert told["lorry.adapter.part_weights"] == (0.5, 0.7)

    (line,) = house.log
    assert (line["adapter"], line["version"], line["digest"]) == (HALF, None, digest)
    assert line["served_model"] == HALF
    assert line["parts"] == [
        {"label": "green@1", "digest": parts["green"].digest, "weight": 0.5},
        {"label": "red@1", "digest": parts["red"].digest, "weight": 0.7},
    ]
    labels = {"adapter": HALF, "version": ""}
    assert house.count("lorry_adapter_loads_total", **labels, result="ok") == 1
    called = {"endpoint": "/v1/chat/completions", "outcome": "ok"}
    assert house.count("lorry_requests_total", **labels, **called) == 1
    facts = {"digest": digest, "rank": "16", "base": "tiny"}
    assert house.count("lorry_adapter_info", **labels, **facts) == 1
    assert set(house.engine.loaded.values()) == {f"{HALF}#{digest[7:19]}.1"}


async def test_every_way_to_write_a_sum_is_one_resident(house):
    for model in (HALF, "red*0.7+green*0.5", "tiny:red*0.2+green*0.5+red*0.5"):
        assert (await house.chat(model)).headers["x-lorry-adapter"] == HALF
    assert len(house.engine.asked) == 1


async def test_one_whole_part_is_the_adapter_and_nothing_is_the_base(house):
    digest = house.catalog.list_versions("red")[0].digest
    for model in ("red*1", "red*0.5+red*0.5", "red+green*0"):
        answer = await house.chat(model)
        assert answer.headers["x-lorry-adapter"] == "red@1"
        assert answer.headers["x-lorry-adapter-digest"] == digest
    for model in ("red*0", "red+red*-1"):
        answer = await house.chat(model)
        assert (answer.json()["model"], answer.headers["x-lorry-adapter"]) == ("tiny", "base")
        assert not any("digest" in name for name in answer.headers)
    assert len(house.engine.asked) == 1


@pytest.mark.parametrize("model", ["red+rde", "rde*0", "red*0.5+re d", "red+red@7", "other:red*2"])
async def test_an_unknown_part_is_answered_as_an_unknown_model(house, model):
    answer = await house.chat(model)
    part = answer.json()["error"]["message"].split("`")[1]
    alone = await house.chat(part)
    assert (answer.status_code, answer.json()) == (404, alone.json())
    assert part in model
    assert part != "red"
    assert answer.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("red*4.5", "The weight 4.5 of 'red' is not from -4 to 4: give a smaller one."),
        ("red*3+green+red*3", "The weight 6 of 'red@1' is not from -4 to 4"),
        ("red*x", "The weight 'x' of 'red' is no decimal: write NAME*WEIGHT+NAME*WEIGHT"),
        ("+".join(["red"] * 9), "at most 8 parts, and 'red' is one too many of 9"),
        ("red*0.5+tiny", "The part 'tiny' is the base, which every sum is added to: leave it out."),
        ("red++green", "The part '' of the sum names no adapter"),
        ("red+" * 3000, "A sum of 12000 characters is too long"),
        (
            "red+green+blue",
            "The ranks of this sum's parts (blue@1 8, green@1 8, red@1 8) are 24 together; this "
            "server serves up to 16.",
        ),
    ],
)
async def test_what_is_no_sum_for_this_server_is_a_400_that_names_the_part(house, model, said):
    answer = await house.chat(model)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "sum_invalid", "model")
    assert said in error["message"]
    assert house.engine.asked == []


async def test_a_part_for_another_base_is_refused_by_its_name(house):
    publish(house.catalog, "foreign", base_digest="sha256:" + "f" * 64)
    answer = await house.chat("red*0.5+foreign*0.1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "base_mismatch")
    assert "foreign@1" in answer.json()["error"]["message"]


async def test_parts_asked_in_other_forms_are_refused(house):
    publish(house.catalog, "own", provenance={"chat_form": {"sha256": "x"}})
    answer = await house.chat("red*0.5+own*0.5")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "sum_invalid")
    assert "own@1 and red@1 are asked in different" in answer.json()["error"]["message"]


async def test_of_a_split_part_the_callers_side_is_taken_and_stays(house):
    publish(house.catalog, "red", content="new", aliases=())
    house.catalog.split("red", "stable", {1: 50, 2: 50}, actor="test")
    seen = set()
    for user in map(str, range(12)):
        alone = (await house.chat("red", headers={"x-session-id": user})).headers
        added = (await house.chat("red*0.5", headers={"x-session-id": user})).headers
        assert added["x-lorry-adapter"] == f"{alone['x-lorry-adapter']}*0.5"
        seen.add(added["x-lorry-adapter"])
    assert seen == {"red@1*0.5", "red@2*0.5"}


async def test_an_alias_that_moves_is_another_sum_from_the_next_call_on(house):
    before = (await house.chat("red*0.5")).headers
    publish(house.catalog, "red", content="new")
    after = (await house.chat("red*0.5")).headers
    assert [each["x-lorry-adapter"] for each in (before, after)] == ["red@1*0.5", "red@2*0.5"]
    assert before["x-lorry-adapter-digest"] != after["x-lorry-adapter-digest"]


async def test_the_list_of_models_has_no_sum_but_one_is_described(house):
    await house.chat(HALF)
    listed = (await house.client.get("/v1/models")).json()["data"]
    assert [each["id"] for each in listed] == ["tiny", "blue", "green", "red"]
    for path in ("red*0.7+green*0.5", "red%20*%200.7%2Bgreen*.5"):
        card = (await house.client.get(f"/v1/models/{path}")).json()
        assert (card["sum"], card["parent"], card["rank"]) == (HALF, "tiny", 16)
        assert card["version"] is None
        labels = [(part["label"], part["weight"]) for part in card["parts"]]
        assert labels == [("green@1", 0.5), ("red@1", 0.7)]
    digest = (await house.chat(HALF)).headers["x-lorry-adapter-digest"]
    assert card["root"] == digest
    assert (await house.client.get("/v1/models/red*0")).json()["id"] == "tiny"
    refused = await house.client.get("/v1/models/red*9")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "sum_invalid")
    assert (await house.client.get("/v1/models/red+rde")).status_code == 404


async def test_removing_a_part_ends_its_sums(house):
    await house.chat("red*0.5")
    await house.chat("green*0.5")
    house.catalog.drop_alias("red", "stable", actor="test")
    admin = {"authorization": f"Bearer {TOKEN}"}
    removed = await house.client.delete("/admin/adapters/red/versions/1", headers=admin)
    assert removed.json()["unloaded"] is True
    assert {name.partition("#")[0] for name in house.engine.loaded.values()} == {"green@1*0.5"}
    assert "red@1*0.5" not in house.metrics.versions()
    assert (await house.chat("red@1*0.5")).status_code == 404


async def test_routers_find_a_resident_sum_by_its_form_alone(house):
    await house.chat("red*0.7+green*0.5")
    text = (await house.client.get("/metrics")).text
    found = [line for line in text.splitlines() if line.startswith("vllm:lora_adapter_loaded{")]
    assert len(found) == 1
    assert f'adapter_name="{HALF}"' in found[0]


async def test_a_sum_takes_turns_as_its_lightest_part(house):
    """Else each sum would be one turn more for its caller, at a weight of its choice."""
    house.catalog.weigh("red", 0.5, actor="test")
    flows = []

    async def note(scope, receive, send):
        call = current_call.get()
        flows.append((call.queue_flow, call.flow))
        await send_json(send, 200, {})

    house.inner.answer = note
    for number in range(1, 9):
        await house.chat(f"green*0.{number}+red")
    assert len(flows) == 8
    for model in ("red", "red*0.5"):
        await house.chat(model)
    assert len(set(flows)) == 1
    for model in ("green", "green*0.5", "tiny"):
        await house.chat(model)
    assert len(set(flows)) == 3


async def test_a_server_without_places_for_sums_refuses_them_but_serves_what_they_come_to(house):
    names = ModelNames("tiny", house.catalog, max_sums=0)
    with pytest.raises(SumRefused, match="start it with --max-sums"):
        await names.resolve("red*0.5")
    assert (await names.resolve("red*1")).label == "red@1"
    assert await names.resolve("red*0") is None


async def test_a_key_needs_every_part(house):
    """A part that it may not use is answered as one that nobody has."""
    headers = make_key(house.catalog)  # for red*
    allowed = await house.chat("red*0.5", headers=headers)
    assert (allowed.status_code, allowed.headers["x-lorry-adapter"]) == (200, "red@1*0.5")
    for model in ("red*0.5+green*0.5", "green+red", "red+green*0", "green*0.5", "red+green@1*9"):
        hidden = await house.chat(model, headers=headers)
        unknown = await house.chat(model.replace("green", "nobody"), headers=headers)
        assert hidden.text.replace("green", "nobody") == unknown.text
        assert hidden.status_code == unknown.status_code == (400 if "*9" in model else 404)
        shown = await house.client.get(f"/v1/models/{model}", headers=headers)
        assert (shown.status_code, shown.json()) == (hidden.status_code, hidden.json())
    assert {name.partition("#")[0] for name in house.engine.loaded.values()} == {"red@1*0.5"}


async def test_what_comes_to_the_base_needs_the_right_to_it(house):
    headers = make_key(house.catalog)
    for model in ("red*0", "red*0.5+tiny"):
        refused = await house.chat(model, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert "base" not in refused.json()["error"]["message"]
    both = make_key(house.catalog, "team-b", base=True)
    assert (await house.chat("red*0", headers=both)).headers["x-lorry-adapter"] == "base"
