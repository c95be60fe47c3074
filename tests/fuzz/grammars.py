"""Calls with a grammar, in every place where one can stand: some valid, most hostile.

A valid one comes with its `language`: a finished answer must be in it.
"""

from __future__ import annotations

import json
import random
from typing import Any

from tests.fuzz.bodies import MODELS
from tests.fuzz.case import Case, Step, randomness, request, sizes
from tests.fuzz.schemas import any_schema, large_schema, regex, simple_schema
from tests.fuzz.values import encode, scalar, text

KIND = "grammars"
_USER = [{"role": "user", "content": "two blue lamps to Oslo by Friday"}]
_TOKENS = 64
Grammar = tuple[str, Any]  # as the key of structured_outputs, and its value


def _valid(rng: random.Random) -> tuple[Grammar, dict[str, Any]]:
    kind = rng.choice(("json", "json", "json", "regex", "choice"))
    if kind == "json":
        schema = simple_schema(rng)
        return ("json", schema), {"schema": schema}
    if kind == "regex":
        pattern = rng.choice(
            (r"[a-c]{2,5}", r"(foo|bar)-\d{1,3}", r"\d{4}-\d{2}", r"é+x?", r"[A-Z][a-z]{0,6}\.")
        )
        return ("regex", pattern), {"regex": pattern}
    choices = rng.sample(
        ["yes", "no", "maybe so", "é", "a|b", "(", "1.5", "yes please"], rng.randrange(1, 6)
    )
    return ("choice", choices), {"choice": choices}


def grammar_text(rng: random.Random) -> str:
    size = sizes(rng, 3000)
    return rng.choice(
        (
            'root ::= "a" root | "b"',
            "root ::= root",
            "root ::= (root)",
            "root ::=",
            'root ::= ("a" | ("b" | ("c")))*',
            'start: "a" start | "b"',
            "start: start",
            "start: A\nA: /" + regex(rng).replace("/", "") + "/",
            "start: " + "(" * size + '"a"' + ")" * size,
            "start: " + " | ".join(f'"w{n}"' for n in range(size)),
            "start: "
            + " ".join(f"r{n}" for n in range(size))
            + "".join(f'\nr{n}: "x"?' for n in range(size)),
            'start: "a"{0,' + str(size * 10) + "}",
            'start: "a"~1..' + str(size * 50),
            "%import common.NUMBER\nstart: NUMBER",
            "%llguidance {}\nstart: <[1]> <|im_end|>",
            'start: %json {"type":"object","properties":{"a":{"$ref":"#"}}}',
            "%ignore / /\nstart: a\na: b\nb: a |",
            'root ::= [^"\\]* ' * size,
            "root ::= [\\u0000-\\U0010ffff]{" + str(size) + "}",
            "root ::= " + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(size % 60)),
            "start[lazy]: /.*/",
            "start: nothing",
            "",
            "\0",
            "start: /(?=a)/",
            '?start: x -> y\n!x: "a"i',
            text(rng)[:200_000],
            "start[capture, max_tokens=5]: /a+/",
            "start: @other",
            "start: " + '"a" ' * size,
        )
    )


def structural_tag(rng: random.Random) -> Any:
    schema = rng.choice((any_schema(rng), large_schema(rng), {"type": "boolean"}))
    count = sizes(rng, 500)
    return rng.choice(
        (
            {
                "type": "structural_tag",
                "structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}],
                "triggers": ["<f"],
            },
            {
                "type": "structural_tag",
                "structures": [
                    {"begin": f"<{n}>", "schema": {"type": "null"}, "end": ""} for n in range(count)
                ],
                "triggers": ["<"] * count,
            },
            {"type": "structural_tag", "structures": [], "triggers": []},
            {"type": "structural_tag"},
            {"structures": [{}], "triggers": [""]},
            {"type": "structural_tag", "format": {"type": "any_text"}},
            {
                "type": "structural_tag",
                "format": {
                    "type": "triggered_tags",
                    "triggers": ["<f"],
                    "tags": [
                        {
                            "begin": "<f>",
                            "content": {"type": "json_schema", "json_schema": schema},
                            "end": "</f>",
                        }
                    ],
                },
            },
            {
                "type": "structural_tag",
                "format": {
                    "type": "sequence",
                    "elements": [{"type": "regex", "pattern": regex(rng)}] * (count % 9),
                },
            },
            {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}},
            [],
            "x",
            None,
        )
    )


def _choices(rng: random.Random) -> Any:
    piece = rng.choice(("w", "\0", "é", "(", "\ud800", "\u2028", "", "|", '"'))
    return rng.choice(
        (
            [],
            [""],
            [piece],
            [1, 2],
            None,
            "x",
            [piece * n for n in range(sizes(rng, 300))],
            [f"{piece}{n}" for n in range(sizes(rng, 60_000))],
            [piece * sizes(rng, 100_000)] * 3,
            ["same"] * sizes(rng, 20_000),
        )
    )


def _hostile(rng: random.Random) -> Grammar:
    kind = rng.choice(
        (
            "json",
            "json",
            "json",
            "regex",
            "regex",
            "choice",
            "grammar",
            "grammar",
            "structural_tag",
            "json_object",
            "two",
        )
    )
    if kind == "json":
        return kind, rng.choice((any_schema, any_schema, large_schema, scalar))(rng)
    if kind == "regex":
        return kind, rng.choice((regex, regex, regex, scalar))(rng)
    if kind == "choice":
        return kind, _choices(rng)
    if kind == "grammar":
        return kind, rng.choice((grammar_text, grammar_text, grammar_text, scalar))(rng)
    if kind == "structural_tag":
        tag = structural_tag(rng)
        return kind, tag if rng.random() < 0.2 else encode(tag).decode("utf-8", "replace")
    return kind, rng.choice((True, False, None, {}, "x"))


# Places


def _place(rng: random.Random, grammar: Grammar, is_valid: bool) -> tuple[str, dict[str, Any]]:
    kind, value = grammar
    path = rng.choice(("/v1/chat/completions", "/v1/completions"))
    prompt = {"messages": _USER} if "chat" in path else {"prompt": "two blue lamps"}
    body = {**prompt, "max_tokens": _TOKENS, "temperature": rng.choice((0, 1))}
    if kind == "two":
        return path, body | {"structured_outputs": {"regex": "a", "json": value, "choice": ["a"]}}
    if kind == "structural_tag" and rng.random() < 0.5 and isinstance(value, dict):
        return path, body | {"response_format": value}
    if kind != "json" or rng.random() < 0.25:
        options = (
            {}
            if rng.random() < 0.8
            else {"disable_any_whitespace": True, "whitespace_pattern": regex(rng)}
        )
        return path, body | {"structured_outputs": {kind: value} | options}
    is_object = isinstance(value, dict) and value.get("type") == "object"
    # The parameters of a tool are an object; hostile ones need not be.
    places = _PLACES_OF_SCHEMAS if is_object or not is_valid else _PLACES_OF_ANSWERS
    return rng.choice(places)(path, body, value)


def _as_response_format(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    return path, body | {"response_format": wanted}


def _as_text_format(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    wanted = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    return "/v1/responses", {
        "input": "two blue lamps",
        "max_output_tokens": _TOKENS,
        "text": {"format": wanted},
    }


def _as_output_config(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    return "/v1/messages", {"messages": _USER, "max_tokens": _TOKENS, "output_config": wanted}


def _as_tool(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    tool = {"type": "function", "function": {"name": "ship", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "ship"}}
    body = {"messages": _USER, "max_tokens": _TOKENS}
    return "/v1/chat/completions", body | {"tools": [tool], "tool_choice": choice}


def _as_required_tool(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name in ("a", "b")
    ]
    return "/v1/chat/completions", {
        "messages": _USER,
        "max_tokens": _TOKENS,
        "tools": tools,
        "tool_choice": "required",
    }


def _as_messages_tool(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    tool = {"name": "ship", "input_schema": schema}
    body = {"messages": _USER, "max_tokens": _TOKENS, "tools": [tool]}
    return "/v1/messages", body | {"tool_choice": {"type": "tool", "name": "ship"}}


def _as_responses_tool(path: str, body: dict[str, Any], schema: Any) -> tuple[str, dict[str, Any]]:
    tool = {"type": "function", "name": "ship", "parameters": schema, "strict": True}
    body = {"input": "two blue lamps", "max_output_tokens": _TOKENS, "tools": [tool]}
    return "/v1/responses", body | {"tool_choice": {"type": "function", "name": "ship"}}


_PLACES_OF_ANSWERS = (_as_response_format, _as_text_format, _as_output_config)
_PLACES_OF_SCHEMAS = (
    *_PLACES_OF_ANSWERS,
    _as_tool,
    _as_required_tool,
    _as_messages_tool,
    _as_responses_tool,
)


def make(seed: int, number: int) -> Case:
    rng = randomness(seed, KIND, number)
    language: dict[str, Any] = {}
    if rng.random() < 0.3:
        grammar, language = _valid(rng)
    else:
        grammar = _hostile(rng)
    path, body = _place(rng, grammar, bool(language))
    body["model"] = rng.choice(MODELS)
    if rng.random() < 0.1:
        body |= {"stream": True, "n": rng.randrange(1, 5), "temperature": 1}
    title = f"{path} {grammar[0]} {'valid' if language else 'hostile'} {json.dumps(sorted(body))}"
    data = encode(body)
    return Case(
        seed,
        KIND,
        number,
        title,
        (Step("send", request(path, data)), Step("answers", amount=1)),
        1,
        language,
    )
