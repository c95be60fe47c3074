"""Bodies of inference calls: valid ones, changed in one to four places, up to the size limits."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.case import Case, Step, randomness, request, sizes
from tests.fuzz.values import MOST_BYTES, Raw, encode, nested, scalar, text

KIND = "bodies"
MODELS = ("shop-base", "orders-json", "orders-sql@1", "support-tone@stable", "shop-base:orders-sql")
_USER = [{"role": "user", "content": "two blue lamps to Oslo by Friday"}]
_TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _USER, "max_tokens": 8},
    "/v1/completions": {"prompt": "two blue lamps", "max_tokens": 8},
    "/v1/responses": {"input": "two blue lamps", "max_output_tokens": 8},
    "/v1/messages": {"messages": _USER, "max_tokens": 8},
    "/v1/messages/count_tokens": {"messages": _USER},
    "/tokenize": {"prompt": "two blue lamps"},
    "/detokenize": {"tokens": [5, 6, 7]},
}
# Fields of OpenAI's, Anthropic's and vLLM's APIs with a value that some path takes.
FIELDS: dict[str, Any] = {
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 2,
    "best_of": 2,
    "echo": True,
    "logprobs": True,
    "top_logprobs": 3,
    "prompt_logprobs": 2,
    "seed": 7,
    "user": "someone",
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "min_tokens": 2,
    "suffix": "end",
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "length_penalty": 1.0,
    "stop": ["\n"],
    "stop_token_ids": [3],
    "bad_words": ["lamp"],
    "logit_bias": {"5": 3.0},
    "allowed_token_ids": [5, 6, 7],
    "ignore_eos": True,
    "tools": [{"type": "function", "function": {"name": "ship", "parameters": _TOOL}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "[a-z]{3}"},
    "text": {"format": {"type": "text"}},
    "output_config": {"effort": "low"},
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"x": 1},
    "add_generation_prompt": True,
    "continue_final_message": True,
    "documents": [{"title": "a"}],
    "mm_processor_kwargs": {"a": 1},
    "truncate_prompt_tokens": 4,
    "priority": 3,
    "cache_salt": "salt",
    "kv_transfer_params": {"a": 1},
    "vllm_xargs": {"a": 1},
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "return_token_strs": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "metadata": {"a": "b"},
    "include_stop_str_in_output": True,
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "include_reasoning": False,
    "instructions": "be brief",
    "store": False,
    "background": False,
    "previous_response_id": "resp_1",
    "truncation": "auto",
    "service_tier": "auto",
    "system": "hi",
    "thinking": {"type": "disabled"},
    "stop_sequences": ["x"],
    "prompt_embeds": "AAAA",
    "request_id": "mine",
    "data_parallel_rank": 0,
    "use_beam_search": False,
    "max_tool_calls": 1,
    "media_io_kwargs": {},
    "add_special_tokens": True,
    "max_completion_tokens": 8,
    "prompt": [1, 2],
    "messages": _USER,
    "input": _USER,
    "tokens": [1],
    "repetition_detection": {"max_pattern_size": 2},
}
_ROLES = ("user", "assistant", "system", "tool", "developer", "function", "", "\0")
_PARTS: tuple[Any, ...] = (
    {"type": "text", "text": "x"},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}},
    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "tool_use", "id": "1", "name": "ship", "input": {}},
    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "x"}]},
    {"type": "thinking", "thinking": "x", "signature": "y"},
    {"type": "refusal", "refusal": "no"},
    {"type": "nothing"},
    {},
    None,
    5,
    [],
)


def make(seed: int, number: int) -> Case:
    rng = randomness(seed, KIND, number)
    path = rng.choice(list(VALID))
    body: dict[str, Any] = {"model": rng.choice(MODELS), **copy.deepcopy(VALID[path])}
    for name in rng.sample(sorted(FIELDS), rng.choice((0, 0, 1, 1, 2, 4))):
        body[name] = copy.deepcopy(FIELDS[name])
    changes = [rng.choice(_CHANGES) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4)))]
    for change in changes:
        change(rng, body)
    data = encode(body)[: MOST_BYTES + 1]
    headers: dict[str, str] = {}
    if rng.random() < 0.12:
        data, headers = _damaged(rng, data)
    title = " ".join([path, *(each.__name__.strip("_") for each in changes)])
    return Case(
        seed,
        KIND,
        number,
        title,
        (Step("send", request(path, data, headers)), Step("answers", amount=1)),
    )


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in it; the items of long lists are alike."""
    found = []
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:4]))
    for key, each in items:
        found.append((value, key))
        if isinstance(each, dict | list):
            found += _places(each)
    return found


def _place(rng: random.Random, body: Any) -> tuple[Any, Any]:
    places = [place for place in _places(body) if place[1] != "model"] or [(body, "x")]
    return rng.choice(places)


def _swap(rng: random.Random, body: Any) -> None:
    where, key = _place(rng, body)
    where[key] = scalar(rng)


def _drop(rng: random.Random, body: Any) -> None:
    where, key = _place(rng, body)
    if key in where or isinstance(where, list):
        del where[key]


def _nest(rng: random.Random, body: Any) -> None:
    where, key = _place(rng, body)
    where[key] = nested(rng)


def _lengthen(rng: random.Random, body: Any) -> None:
    where, key = _place(rng, body)
    value = where.get(key) if isinstance(where, dict) else where[key]
    item = encode(value[0] if isinstance(value, list) and value else value).decode(
        "utf-8", "replace"
    )
    count = min(sizes(rng, 300_000), MOST_BYTES // (len(item) + 1))
    where[key] = Raw("[" + ",".join([item] * count) + "]")


def _enlarge(rng: random.Random, body: Any) -> None:
    where, key = _place(rng, body)
    where[key] = text(rng)


def _many_keys(rng: random.Random, body: Any) -> None:
    where, key = _place(rng, body)
    where[key] = {f"k{n}": scalar(rng) for n in range(sizes(rng, 50_000))}


def _wrong_field(rng: random.Random, body: Any) -> None:
    body[rng.choice(sorted(FIELDS))] = scalar(rng)


def _extreme_field(rng: random.Random, body: Any) -> None:
    values: tuple[Callable[[], Any], ...] = (
        lambda: text(rng),
        lambda: nested(rng),
        lambda: [scalar(rng)] * sizes(rng, 10_000),
        lambda: [text(rng)[:100]] * sizes(rng, 10_000),
        lambda: sizes(rng, 1e12),
        lambda: list(range(sizes(rng, 50_000))),
    )
    body[rng.choice(sorted(FIELDS))] = rng.choice(values)()


def _unknown_field(rng: random.Random, body: Any) -> None:
    body[rng.choice(("x", "", "\0", "__class__", "self", "model_config", "a" * 10_000))] = scalar(
        rng
    )


def _repeat_key(rng: random.Random, body: Any) -> None:
    key = rng.choice(sorted(body))
    values = ",".join(
        f"{json.dumps(key)}:{encode(scalar(rng)).decode('utf-8', 'replace')}" for _ in range(3)
    )
    body["x"] = Raw("0," + values)


def _talk(rng: random.Random, body: Any) -> None:
    turns = []
    for _ in range(sizes(rng, 60)):
        content = rng.choice(("x", None, [rng.choice(_PARTS) for _ in range(3)], text(rng)[:1000]))
        turn = {"role": rng.choice(_ROLES), "content": content}
        if rng.random() < 0.2:
            turn["tool_calls"] = rng.choice(
                (
                    [],
                    None,
                    [{}],
                    [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "ship", "arguments": "{"},
                        }
                    ],
                )
            )
        turns.append(turn)
    body[rng.choice([key for key in ("messages", "input") if key in body] or ["messages"])] = turns


def _other_model(rng: random.Random, body: Any) -> None:
    body["model"] = rng.choice(
        (
            "nobody",
            "../x",
            "orders-json@99",
            "orders-json@sha256:0",
            "a*0.5+b",
            text(rng),
            scalar(rng),
        )
    )


_CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    _swap,
    _swap,
    _swap,
    _drop,
    _nest,
    _lengthen,
    _lengthen,
    _enlarge,
    _enlarge,
    _many_keys,
    _wrong_field,
    _wrong_field,
    _wrong_field,
    _extreme_field,
    _extreme_field,
    _unknown_field,
    _repeat_key,
    _talk,
    _talk,
    _other_model,
)


def _damaged(rng: random.Random, data: bytes) -> tuple[bytes, dict[str, str]]:
    cut = rng.randrange(len(data) + 1)
    return rng.choice(
        (
            (data[:cut], {}),
            (data[:cut] + b"\xff" + data[cut:], {}),
            (b"\xef\xbb\xbf" + data, {}),
            (data.decode("utf-8", "replace").encode("utf-16", "replace")[:MOST_BYTES], {}),
            (data + data[:1000], {}),
            (b" " * sizes(rng, MOST_BYTES / 4) + data[: MOST_BYTES // 2], {}),
            (b"", {}),
            (b"null", {}),
            (b"[]" * 1000, {}),
            (data, {"content-type": "text/plain"}),
            (data, {"content-type": "multipart/form-data"}),
            (data, {"content-encoding": "gzip"}),
            (data, {"accept": "text/event-stream"}),
            (data, {"x-request-id": "\x7f" * 100}),
            (data, {"traceparent": "00-" + "f" * 60}),
            (data, {"x-request-timeout": "-1"}),
            (data, {"authorization": "Bearer x"}),
            (data, {"cookie": "a=" + "b" * 60_000}),
        )
    )
