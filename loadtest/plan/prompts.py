"""A planned call as the body of an OpenAI request.

Every call has its own random prompt, made from the seed, so that no prefix cache answers for the
server.
"""

from __future__ import annotations

import random
from typing import Any

from loadtest.plan.plan import Call
from loadtest.plan.scenario import Scenario

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

# Small enough for an answer of some twenty tokens, and no part of it can go on for ever.
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

# Short and common, as these are mostly one token each: a prompt has about the length asked for.
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
    """The request's JSON. `ignore_eos` is vLLM's and is there only if the stream asks for it."""
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
    elif scenario.streams[call.stream].ignore_eos:
        request["ignore_eos"] = True
    return request


def _prompt(call: Call, scenario: Scenario) -> dict[str, Any]:
    dice = random.Random(f"{scenario.seed}/{call.phase}/{call.stream}/{call.number}/prompt")
    if call.endpoint == "completions" and scenario.vocabulary is not None:
        # The lower part holds ends of texts and single bytes; a prompt that ends within a
        # character would have its last bytes repeated by the answer.
        tokens = range(scenario.vocabulary // 2, scenario.vocabulary)
        return {"prompt": dice.choices(tokens, k=call.prompt_tokens)}
    text = " ".join(dice.choices(WORDS, k=call.prompt_tokens))
    if call.endpoint == "completions":
        return {"prompt": text}
    return {"messages": [{"role": "user", "content": text}]}
