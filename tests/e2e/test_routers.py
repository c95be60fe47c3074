"""A router of the Gateway API finds what a real server runs and holds, by the names of callers."""

from __future__ import annotations

import httpx2
from gateway_router import Endpoint, read_endpoint
from shop import ADAPTERS, BASE_NAME

PATH = "/v1/chat/completions"


def look(admin) -> Endpoint:
    text = admin.http.get("/metrics").text
    infos = [line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{")]
    assert len(infos) == 1
    assert "#" not in infos[0].partition("}")[0]  # no name of the engine's side
    return read_endpoint(text)


def test_an_adapter_is_found_by_each_name_until_its_alias_moves(server, admin, shop):
    admin.upload("routed", admin.object(shop.digests[ADAPTERS[0]]))
    admin.upload("routed", admin.object(shop.digests[ADAPTERS[1]]), alias="next")
    long = {
        "model": "routed",
        "messages": [{"role": "user", "content": "two blue lamps to Oslo"}],
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx2.stream("POST", f"{server.url}{PATH}", json=long, timeout=120) as stream:
        lines = stream.iter_lines()
        while '"content":"' not in next(lines):
            pass
        seen = look(admin)
        assert seen.active == {"routed", "routed@1", "routed@stable"}
        assert seen.most == 2
        assert [seen.score(name) for name in ("routed", "routed@2", BASE_NAME)] == [1.0, 0.0, 0.0]
        admin.ask("PUT", "/routed/aliases/stable", json={"version": 2})
        assert look(admin).active == {"routed@1"}
    assert {"routed@1"} == {name for name in look(admin).loaded if name.startswith("routed")}
    admin.answer("routed", "two blue lamps to Oslo")
    assert {"routed", "routed@2", "routed@stable", "routed@next"} <= set(look(admin).loaded)
