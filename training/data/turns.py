"""The turns of a chat, as OpenAI and ShareGPT write them, in the one form that templates take.

Knows nothing about files or tokens.
"""

import json
from typing import Any, Final

ROLES: Final = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
REASONING: Final = ("reasoning_content", "reasoning", "thinking")
# What a chat template may use; other keys are reported as not learnt.
KEPT: Final = ("name", "tool_call_id", *REASONING)
OTHER_MEANINGS: Final = ("function_call", "audio", "images", "image", "video")

# role and content, and where there are such: tool_calls and those of KEPT; weight while it is read.
Turn = dict[str, Any]


class Malformed(Exception):
    """The cause for which a record is refused."""


def read_turns(value: Any, column: str, unused: set[str]) -> list[Turn]:
    """Check and unify the turns of a chat; adds to `unused` the keys that nothing learns."""
    turns = parse_json(value, column)
    if not isinstance(turns, list):
        raise Malformed(f"{column} is not a list")
    return [_read_turn(turn, column, unused) for turn in turns]


def split_chat(turns: list[Turn]) -> list[tuple[list[Turn], Turn]]:
    """Each assistant turn to learn, with all turns before it."""
    answers = [
        index
        for index, turn in enumerate(turns)
        if turn["role"] == "assistant" and turn.get("weight") != 0
    ]
    if not answers:
        raise Malformed("no assistant turn to learn")
    if answers[0] == 0:
        raise Malformed('starts with an assistant turn; "weight": 0 keeps it without learning it')
    plain = [{key: each for key, each in turn.items() if key != "weight"} for turn in turns]
    return [(plain[:index], plain[index]) for index in answers]


def parse_json(value: Any, column: str) -> Any:
    """A list or an object, which CSV and some tables hold as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{column} is a text, and not JSON") from error


def _read_turn(turn: Any, column: str, unused: set[str]) -> Turn:
    if not isinstance(turn, dict):
        raise Malformed(f"{column} holds something other than turns")
    turn = {key: value for key, value in turn.items() if value is not None}
    if "from" in turn:
        turn = _from_sharegpt(turn)
    role = turn.get("role")
    if role not in ROLES:
        raise Malformed(f"a message's role is not one of {', '.join(ROLES)}")
    for key in OTHER_MEANINGS:
        if turn.get(key):
            raise Malformed(f"a message of role {role} has {key}, which is not learnt")
    read: Turn = {"role": role, "content": _read_content(turn.get("content", ""), role)}
    if role == "assistant" and turn.get("tool_calls"):
        read["tool_calls"] = [_read_call(call) for call in _as_list(turn["tool_calls"])]
    if not read["content"].strip() and role in ("user", "assistant") and "tool_calls" not in read:
        raise Malformed(f"a message of role {role} has no text")
    read |= {key: turn[key] for key in KEPT if turn.get(key)}
    if "weight" in turn:
        read["weight"] = _read_weight(turn["weight"], role)
    known = {"role", "content", "tool_calls", "weight", *KEPT, *OTHER_MEANINGS}
    unused |= {f"{column}[].{key}" for key in turn.keys() - known}
    return read


def _from_sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    said = str(turn["from"]).lower()
    if said not in SHAREGPT_ROLES:
        raise Malformed(f"from is not one of {', '.join(SHAREGPT_ROLES)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    value = turn.get("value", "")
    if said == "function_call":
        call = parse_json(value, "the value of a function_call")
        return {**rest, "role": "assistant", "tool_calls": [{"function": call}]}
    return {**rest, "role": SHAREGPT_ROLES[said], "content": value}


def _read_content(content: Any, role: str) -> str:
    if isinstance(content, list):
        # The server joins the parts of a call in the same way.
        found = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [text for text in found if isinstance(text, str)]
        if len(texts) == len(content):
            return "\n".join(texts)
        raise Malformed(f"a message of role {role} has parts other than text, which are not learnt")
    if not isinstance(content, str):
        raise Malformed(f"a message of role {role} has no text")
    return content


def _as_list(calls: Any) -> list[Any]:
    calls = parse_json(calls, "tool_calls")
    if not isinstance(calls, list):
        raise Malformed("tool_calls is not a list")
    return calls


def _read_call(call: Any) -> dict[str, Any]:
    """A call with its arguments as an object, which is what the server gives to templates."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Malformed("a tool call names no function")
    arguments = parse_json(function.get("arguments") or {}, "the arguments of a tool call")
    if not isinstance(arguments, dict):
        raise Malformed("the arguments of a tool call are not an object")
    function = {"name": function["name"], "arguments": arguments}
    named = {"id": call["id"]} if call.get("id") else {}
    return {**named, "type": "function", "function": function}


def _read_weight(weight: Any, role: str) -> int:
    if weight not in ((0, 1) if role == "assistant" else (0,)):
        raise Malformed(f"a message of role {role} has a weight that is not learnt")
    return int(weight)
