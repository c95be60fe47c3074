"""An adapter with a chat template of its own is asked in it; all others are asked as before."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
from admin_client import AdminClient
from shop import BASE_NAME
from transformers import AutoTokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role | upper }}] {{ message.content }}"
    "{% if loud %}!{% endif %}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)
PARTS = (
    "{% for message in messages %}{% for part in message['content'] %}<{{ part.text }}>"
    "{% endfor %}{% endfor %}"
)
BOMB = (
    "{{ messages[0].content }}{% if messages[0].content == 'boom' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "two blue lamps to Oslo"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def published(server, shop, tmp_path_factory) -> dict[str, str]:
    """The weights of one adapter under three forms; the templates by name."""
    folder = tmp_path_factory.mktemp("forms")
    templates = {"spoken": TEMPLATE, "in-parts": PARTS, "bomb": BOMB}
    with AdminClient(server.url, shop.store) as admin:
        for name, template in templates.items():
            own = shutil.copytree(admin.object(shop.digests["orders-json"]), folder / name)
            (own / "chat_template.jinja").write_text(template)
            config = {"bos_token": "<|system|>", "eos_token": "<|user|>"}
            (own / "tokenizer_config.json").write_text(json.dumps(config))
            made = admin.upload(name, own)
            assert made["provenance"]["chat_form"]["end_token"] == "<|user|>"
            assert "publish_warnings" not in made["provenance"]
    return templates


@pytest.fixture(scope="module")
def tokens(shop, published):
    """The prompt of a chat, as transformers makes it."""
    tokenizer = AutoTokenizer.from_pretrained(shop.base)

    def tokens(model: str, chat: list[dict[str, Any]] = CHAT, **options: Any) -> list[int]:
        template = published.get(model)
        own = {"chat_template": template, "bos_token": "<|system|>"} if template else {}
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, **own, **options
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return tokens


def ask(server, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx2.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_tokenize_shows_the_adapters_own_prompt(server, tokens) -> None:
    for model in ("spoken", BASE_NAME, "orders-json", "spoken", "orders-sql"):
        found = ask(server, "/tokenize", model=model, messages=CHAT)["tokens"]
        assert found == tokens(model), model
    assert tokens("spoken") != tokens("orders-json") == tokens(BASE_NAME)


def test_a_template_gets_its_tools_and_its_callers_arguments(server, tokens) -> None:
    asked = {"model": "spoken", "messages": CHAT}
    loud = ask(server, "/tokenize", **asked, chat_template_kwargs={"loud": True})["tokens"]
    assert loud == tokens("spoken", loud=True) != tokens("spoken")
    with_tools = ask(server, "/tokenize", **asked, tools=[TOOL])["tokens"]
    plain = tokens("spoken", tools=[TOOL])
    assert with_tools[: len(plain) // 2] == plain[: len(plain) // 2]
    assert len(with_tools) > len(tokens("spoken"))


def test_contents_are_parts_where_the_template_takes_parts(server, tokens) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "lamps"}]}]
    expected = tokens("in-parts", parts)
    assert ask(server, "/tokenize", model="in-parts", messages=parts)["tokens"] == expected
    text = [{"role": "user", "content": "lamps"}]
    assert ask(server, "/tokenize", model="in-parts", messages=text)["tokens"] == expected


def test_each_endpoint_asks_in_the_form(server, tokens) -> None:
    expected = len(tokens("spoken"))
    chat = ask(server, "/v1/chat/completions", model="spoken", messages=CHAT, max_tokens=2)
    assert (chat["model"], chat["usage"]["prompt_tokens"]) == ("spoken@1", expected)
    messages = {"model": "spoken", "system": "Be brief.", "messages": CHAT[1:], "max_tokens": 2}
    assert ask(server, "/v1/messages", **messages)["usage"]["input_tokens"] == expected
    given = {"model": "spoken", "instructions": "Be brief.", "input": CHAT[1]["content"]}
    made = ask(server, "/v1/responses", **given, max_output_tokens=2)
    assert made["usage"]["input_tokens"] == expected


async def test_a_mix_of_calls_is_asked_each_in_its_own_form(server, tokens) -> None:
    models = ("spoken", "orders-json", BASE_NAME, "in-parts", "orders-sql", "bomb")

    async def prompt_of(client: httpx2.AsyncClient, model: str, number: int) -> bool:
        chat = [{"role": "user", "content": f"{number} lamps for {model}"}]
        body = {"model": model, "messages": chat, "max_tokens": 2, "return_token_ids": True}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        parts = [{"role": "user", "content": [{"type": "text", "text": chat[0]["content"]}]}]
        expected = tokens(model, parts if model == "in-parts" else chat)
        return bool(answer.json()["prompt_token_ids"] == expected)

    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client:
        asked = [prompt_of(client, model, number) for number in range(10) for model in models]
        assert all(await asyncio.gather(*asked))


def test_an_answer_ends_at_the_adapters_end_token(server, shop, tokens) -> None:
    """Here the prompt ends before the token that comes next, so that the answer begins with it."""
    asked = {"prompt": tokens("orders-json")[:3], "temperature": 0, "max_tokens": 12}
    user = AutoTokenizer.from_pretrained(shop.base).convert_tokens_to_ids("<|user|>")
    force = {"logit_bias": {str(user): 100}, "return_token_ids": True}
    ended = ask(server, "/v1/completions", model="spoken", **asked, **force)["choices"][0]
    assert (ended["finish_reason"], ended["token_ids"]) == ("stop", [user])
    going = ask(server, "/v1/completions", model="orders-json", **asked, **force)["choices"][0]
    assert (going["finish_reason"], len(going["token_ids"])) == ("length", 12)


async def test_a_bomb_is_refused_and_delays_nobody(server, published) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:

        async def explode() -> httpx2.Response:
            chat = [{"role": "user", "content": "boom"}]
            return await client.post("/tokenize", json={"model": "bomb", "messages": chat})

        bombs = [asyncio.create_task(explode()) for _ in range(2)]
        for _ in range(5):
            asked = {"model": "spoken", "messages": CHAT}
            assert (await client.post("/tokenize", json=asked)).status_code == 200
        for answer in await asyncio.gather(*bombs):
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "chat_template_too_complex"
        chat = [{"role": "user", "content": "fine"}]
        again = await client.post("/tokenize", json={"model": "bomb", "messages": chat})
        assert again.status_code == 200


def test_a_callers_own_template_stays_refused(server, published) -> None:
    asked = {"model": "spoken", "messages": CHAT, "chat_template": "{{ messages }}"}
    error = ask(server, "/v1/chat/completions", 400, **asked)["error"]
    assert "trust-request-chat-template" in error["message"]


def test_a_template_that_is_no_template_is_refused_when_published(
    server, shop, tmp_path: Path
) -> None:
    with AdminClient(server.url, shop.store) as admin:
        own = shutil.copytree(admin.object(shop.digests["orders-sql"]), tmp_path / "own")
        (own / "chat_template.jinja").write_text("{% for")
        answer = admin.upload("broken-form", own, 422)
        assert "template_unusable" in json.dumps(answer)
