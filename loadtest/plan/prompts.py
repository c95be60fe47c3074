"""The OpenAI request of a planned call.

Every call has its own random prompt, drawn from the seed, so that no prefix cache can answer it.
"""

from __future__ import annotations

import random
from typing import Any

from loadtest.plan.plan import Call
from loadtest.plan.scenario import Scenario

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

# Bounded in every part: an answer takes some twenty tokens.
STRUCTURE = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "ok": {"type": "boolean"},
                "size": {"type": "string", "enum": ["small", "medium", "large"]},
            },
            "required": ["ok", "size"],
            "additionalProperties": False,
        },
    },
}

# Short common words are mostly one token each, so a prompt has about the requested length.
_TEXT = """
able about above across after again air all almost along also always among and animal answer
apple area around ask back ball bank base bear beat before begin behind best better between big
bird black blue board boat body book both box boy bread bring brother brown build but call camp
can car care carry cat catch center chair change check child city class clean clear close cloud
coat cold color come cook cool corn corner could country cover cross cut dark day deep door down
draw dress drink drive dry early earth east easy eat edge egg end enough even evening every eye
face fact fall family far farm fast father field fill find fine fire first fish floor flower fly
food foot forest form four free friend from front full game garden gave girl give glass gold good
grass great green ground group grow half hand happy hard hat head hear heart heat help here high
hill hold home horse hot hour house ice idea inch island job jump keep kind king know lake land
large last late laugh lead learn leave left letter life light line list live long look low made
"""
WORDS = tuple(_TEXT.split())


def path(call: Call) -> str:
    return PATHS[call.endpoint]


def body(call: Call, model: str, scenario: Scenario) -> dict[str, Any]:
    """The request's JSON, with vLLM's `ignore_eos` only if the stream has it."""
    stream = scenario.streams[call.stream]
    request: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "max_tokens": call.output_tokens,
        **_prompt(call, scenario),
    }
    if call.streamed:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    if call.structured:
        request["response_format"] = STRUCTURE
    elif stream.ignore_eos:
        request["ignore_eos"] = True
    if stream.callers is not None:
        request["user"] = f"{call.stream}-{call.number % stream.callers}"
    return request


def _prompt(call: Call, scenario: Scenario) -> dict[str, Any]:
    rng = random.Random(f"{scenario.seed}/{call.phase}/{call.stream}/{call.number}/prompt")
    if call.endpoint == "completions" and scenario.vocabulary is not None:
        # The lower half holds special tokens and single bytes: after a prompt that ends within a
        # character, the answer would repeat its last bytes.
        tokens = range(scenario.vocabulary // 2, scenario.vocabulary)
        return {"prompt": rng.choices(tokens, k=call.prompt_tokens)}
    text = " ".join(rng.choices(WORDS, k=call.prompt_tokens))
    if call.endpoint == "completions":
        return {"prompt": text}
    return {"messages": [{"role": "user", "content": text}]}
