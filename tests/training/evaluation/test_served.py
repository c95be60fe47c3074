"""Answers over HTTP from a stand-in server: what is sent, who is believed, what is tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from openai_standin import Manner, Standin, count, refusal, serve

from adapters.errors import AnswerUnclear, ServerRefused, ServerUnreachable
from training.data.forms import Example
from training.data.problems import Place
from training.evaluation.answers import Answer
from training.evaluation.served import Asked, Server, WrongAdapter

DIGEST = "sha256:" + "d" * 64
ASKED = Asked("orders@2", DIGEST)
BY_ORDERS = {"x-lorry-adapter": "orders@2", "x-lorry-adapter-digest": DIGEST}
HELLO = [{"role": "user", "content": "two lamps"}]


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with serve() as standin:
        yield standin


def example(prompt: object = HELLO, tools: tuple = ()) -> Example:
    return Example(Place("heldout", 1), prompt, [{"role": "assistant", "content": "2"}], tools)


async def ask(standin: Standin, asked: Asked = ASKED, *examples: Example, **options) -> list:
    wanted = list(examples) or [example()]
    server = Server(standin.url, "a-key")
    return await asyncio.to_thread(server.answer, asked, wanted, max_new_tokens=3, **options)


def answered(text: str, model: str = "orders@2", finish: str = "stop") -> bytes:
    choice = {"message": {"content": text}, "finish_reason": finish}
    return json.dumps({"model": model, "choices": [choice], "usage": count(7, 2)}).encode()


async def test_a_chat_is_asked_greedily_and_its_answer_is_read(standin) -> None:
    standin.manner = Manner(headers=BY_ORDERS)
    assert await ask(standin) == [Answer(" t0 t1 t2", 3, ended=False)]
    assert standin.asked == [
        {"model": "orders@2", "messages": HELLO, "temperature": 0, "max_tokens": 3}
    ]
    assert standin.headers[0]["Authorization"] == "Bearer a-key"


async def test_a_text_is_a_completion(standin) -> None:
    standin.manner = Manner(headers=BY_ORDERS)
    await ask(standin, ASKED, example("two lamps ->"))
    assert standin.asked[0]["prompt"] == "two lamps ->"


async def test_tools_are_shown_and_calls_come_as_written(standin) -> None:
    standin.manner = Manner(headers=BY_ORDERS)
    tool = {"type": "function", "function": {"name": "ship", "parameters": {}}}
    call = {"type": "function", "function": {"name": "ship", "arguments": {"to": "Oslo"}}}
    turns = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    await ask(standin, ASKED, example(turns, (tool,)))
    (body,) = standin.asked
    assert (body["tools"], body["tool_choice"]) == ([tool], "none")
    sent = body["messages"][1]["tool_calls"][0]
    assert sent["id"] == "call_0"
    assert json.loads(sent["function"]["arguments"]) == {"to": "Oslo"}
    assert call["function"]["arguments"] == {"to": "Oslo"}


async def test_answers_keep_their_order_and_concurrency_its_bound(standin) -> None:
    def choose(body: dict) -> Manner:
        number = int(body["messages"][0]["content"])
        return Manner(
            headers=BY_ORDERS, body=answered(f"no {number}"), seconds=0.05 if number % 2 else 0
        )

    standin.choose = choose
    asked = [example([{"role": "user", "content": str(number)}]) for number in range(20)]
    said: list[str] = []
    found = await ask(standin, ASKED, *asked, concurrency=4, report=said.append)
    assert [each.text for each in found] == [f"no {number}" for number in range(20)]
    assert 1 < standin.most_in_flight <= 4
    assert said == ["20/20 answers"]


async def test_the_base_is_found_and_known_by_its_name(standin) -> None:
    name = await asyncio.to_thread(Server(standin.url).find_base)
    assert name == "tiny"
    standin.manner = Manner(headers={"x-lorry-adapter": "base"})
    assert len(await ask(standin, Asked(name))) == 1


async def test_of_a_server_without_attribution_the_model_must_do(standin) -> None:
    assert len(await ask(standin)) == 1


@pytest.mark.parametrize(
    ("headers", "model", "said"),
    [
        ({}, "orders@1", "model is 'orders@1' instead of 'orders@2'"),
        ({}, "tiny", "model is 'tiny' instead of 'orders@2'"),
        (BY_ORDERS | {"x-lorry-adapter": "base"}, "orders@2", "x-lorry-adapter is 'base'"),
        (
            BY_ORDERS | {"x-lorry-adapter-digest": "sha256:0"},
            "orders@2",
            "x-lorry-adapter-digest is 'sha256:0'",
        ),
        ({"x-lorry-adapter": "orders@2"}, "orders@2", "x-lorry-adapter-digest is None"),
    ],
)
async def test_an_answer_of_another_is_an_error(standin, headers, model, said) -> None:
    standin.manner = Manner(headers=headers, body=answered("2", model))
    with pytest.raises(WrongAdapter, match=f"orders@2 was asked, .*{said}"):
        await ask(standin)


async def test_an_adapter_must_not_answer_for_the_base(standin) -> None:
    standin.manner = Manner(headers=BY_ORDERS, body=answered("2", "tiny"))
    with pytest.raises(WrongAdapter):
        await ask(standin, Asked("tiny"))


async def test_a_busy_server_is_asked_again(standin) -> None:
    manners = [Manner(429, {"retry-after": "0"}), Manner(503), Manner(headers=BY_ORDERS)]
    manners[1].headers = {"retry-after": "soon"}
    standin.choose = lambda body: manners.pop(0)
    assert len(await ask(standin)) == 1
    assert len(standin.asked) == 3


async def test_a_refusal_has_the_servers_words_and_ends_the_others(standin) -> None:
    standin.manner = Manner(404, body=refusal("model_not_found", "no such model"))
    with pytest.raises(ServerRefused, match=r"^no such model$") as raised:
        await ask(standin, ASKED, *[example()] * 50)
    assert (raised.value.code, raised.value.status) == ("model_not_found", 404)
    assert len(standin.asked) < 50


@pytest.mark.parametrize(
    "body", [b"[]", b"hello", b'{"model": "orders@2"}', b'{"model": "orders@2", "choices": [1]}']
)
async def test_what_is_no_answer_is_unclear(standin, body) -> None:
    standin.manner = Manner(headers=BY_ORDERS, body=body)
    with pytest.raises(AnswerUnclear):
        await ask(standin)


def test_nobody_at_the_address_is_said() -> None:
    server = Server("http://127.0.0.1:9")
    with pytest.raises(ServerUnreachable):
        server.answer(ASKED, [example()])
    with pytest.raises(ServerUnreachable):
        server.find_base()
