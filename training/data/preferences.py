"""Preferences: a prompt, and of two answers the better one, as TRL and LLaMA-Factory write them."""

import json
from typing import Any, Final

from training.data.turns import Malformed, Turn, read_turns

ANSWERS: Final = ("chosen", "rejected")
NEITHER: Final = "no chosen and rejected answer, which is what method: dpo learns from"

Answer = list[Turn] | str


def read_answers(record: dict[str, Any]) -> dict[str, Any]:
    """The two answers of a record as it holds them; raises Malformed."""
    if not all(record.get(name) for name in ANSWERS):
        raise Malformed(NEITHER)
    chosen, rejected = (record[name] for name in ANSWERS)
    if type(chosen) is not type(rejected):
        raise Malformed("chosen and rejected differ in form")
    if chosen == rejected:
        raise Malformed("chosen and rejected are the same answer")
    return {"chosen": chosen, "rejected": rejected}


def read_answer_turns(value: Any, name: str, unused: set[str]) -> list[Turn]:
    """An answer as turns: a text, one turn, or a list of them, in JSON text or not."""
    if isinstance(value, str):
        value = _parse_turns(value) or [{"role": "assistant", "content": value}]
    return read_turns([value] if isinstance(value, dict) else value, name, unused)


def _parse_turns(text: str) -> list[Any] | None:
    """The turns that a table holds as JSON text; an answer may be JSON, too, but has no roles."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    turns = value if isinstance(value, list) else [value]
    are_turns = all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)
    return turns if turns and are_turns else None


def split_prompt(
    before: list[Turn], chosen: list[Turn], rejected: list[Turn]
) -> tuple[list[Turn], Turn, Turn]:
    """Two answers to a prompt, or two whole chats, as their common prompt and one answer each."""
    if len(chosen) == len(rejected) == 1:
        chosen, rejected = before + chosen, before + rejected
    elif before != chosen[: len(before)]:
        raise Malformed("chosen starts otherwise than its prompt")
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("chosen and rejected differ before their last turn")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise Malformed(f"{name} does not end with an assistant turn")
    return chosen[:-1], chosen[-1], rejected[-1]
