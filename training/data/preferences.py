"""Preferences: a prompt, and of two answers the better one, as TRL and LLaMA-Factory write them."""

from typing import Any, Final

from training.data.turns import Malformed, Turn, parse_json, read_turns

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
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        value = [{"role": "assistant", "content": value}]
    elif isinstance(value, str):
        value = parse_json(value, name)
    return read_turns([value] if isinstance(value, dict) else value, name, unused)


def split_prompt(chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], Turn, Turn]:
    """Two whole chats as their common prompt and one answer each."""
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("chosen and rejected differ before their last turn")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise Malformed(f"{name} does not end with an assistant turn")
    return chosen[:-1], chosen[-1], rejected[-1]
