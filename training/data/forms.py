"""The forms of a record: messages, prompt and completion, instruction, conversations, preferences.

A record that says something else than "imitate this answer" is refused, never half understood.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from training.data.preferences import ANSWERS, read_answer_turns, read_answers, split_prompt
from training.data.problems import Place
from training.data.turns import Malformed, Turn, parse_json, read_turns, split_chat

FORMS: Final = (
    "messages",
    "conversations",
    "prompt and completion",
    "instruction and output (or response)",
)
# The columns that a preference's prompt may stand in: turns, or texts of one user turn.
CHATS: Final = ("messages", "conversations", "prompt")
ASKED: Final = ("prompt", "instruction", "input", "context")
PREFERENCES: Final = (
    "chosen and rejected are preferences, not an answer to imitate: train with method: dpo"
)
NO_ANSWERS: Final = {
    "functions": "functions are not learnt: name them tools",
    "function_call": "function_call is not learnt: write it as tool_calls of a message",
    "chat_template_kwargs": "chat_template_kwargs are not learnt",
    "history": "history is not learnt: write all turns as messages",
    "images": "images are not learnt",
    "image": "images are not learnt",
    "audio": "audio is not learnt",
    "audios": "audio is not learnt",
    "video": "videos are not learnt",
    "videos": "videos are not learnt",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the completion to learn; both are chat turns, or both are plain text.

    `rejected` is the worse answer of a preference.
    """

    place: Place
    prompt: list[Turn] | str
    completion: list[Turn] | str
    tools: tuple[dict[str, Any], ...] = ()
    rejected: list[Turn] | str | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """The examples of one record, its form, and the columns and keys that nothing learns."""

    form: str
    examples: list[Example]
    unused: set[str]


def parse_record(record: dict[str, Any], place: Place, method: str = "sft") -> Parsed:
    """Read a record in whichever form it has; raises Malformed."""
    record = {key: value for key, value in record.items() if value is not None}
    _refuse_other_meanings(record)
    if method == "dpo":
        return _parse_preference(record, place)
    if any(record.get(name) for name in ANSWERS):
        raise Malformed(PREFERENCES)
    for column in ("messages", "conversations"):
        if column in record:
            return _parse_chat(record, column, place)
    if "prompt" in record and "completion" in record:
        return _parse_pair(record, place)
    answer = next((key for key in ("output", "response") if key in record), None)
    if "instruction" in record and answer:
        return _parse_instruction(record, answer, place)
    raise Malformed(f"none of these: {', '.join(FORMS)}")


def _refuse_other_meanings(record: dict[str, Any]) -> None:
    for column, cause in NO_ANSWERS.items():
        if record.get(column):
            raise Malformed(cause)
    if record.get("label") is False or record.get("label") in ("false", "False"):
        raise Malformed("label is false: an answer to avoid, which is not learnt")
    if record.get("weight", 1) not in (1, "1", ""):
        raise Malformed("the weight of a whole record is not learnt")


def _parse_chat(record: dict[str, Any], column: str, place: Place) -> Parsed:
    unused = _unused(record, column, "system", "tools")
    turns = read_turns(record[column], column, unused)
    turns = _with_system(record, turns)
    tools = _read_tools(record)
    examples = [Example(place, prompt, [answer], tools) for prompt, answer in split_chat(turns)]
    return Parsed(column, examples, unused)


def _parse_pair(record: dict[str, Any], place: Place) -> Parsed:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _parse_chat_pair(record, place)
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str) or not text.strip():
            raise Malformed(f"{name} is not a text")
    for name in ("system", "tools"):
        if record.get(name):
            raise Malformed(f"{name} beside prompt is not learnt: write the turns as messages")
    unused = _unused(record, "prompt", "completion", "system", "tools")
    return Parsed("prompt", [Example(place, prompt, completion)], unused)


def _parse_chat_pair(record: dict[str, Any], place: Place) -> Parsed:
    """TRL's other form of a pair: both are turns, and those of the prompt are not learnt."""
    unused = _unused(record, "prompt", "completion", "system", "tools")
    prompt = read_turns(record["prompt"], "prompt", unused)
    completion = read_turns(record["completion"], "completion", unused)
    turns = _with_system(record, [turn | {"weight": 0} for turn in prompt] + completion)
    tools = _read_tools(record)
    examples = [Example(place, before, [answer], tools) for before, answer in split_chat(turns)]
    return Parsed("prompt", examples, unused)


def _parse_instruction(record: dict[str, Any], answer: str, place: Place) -> Parsed:
    context = "input" if "input" in record else "context"
    unused = _unused(record, "instruction", context, answer, "system")
    for name in ("instruction", context, answer):
        if not isinstance(record.get(name, ""), str):
            raise Malformed(f"{name} is not a text")
    if not record[answer].strip():
        raise Malformed(f"{answer} is not a text")
    asked = [text for name in ("instruction", context) if (text := record.get(name, "").strip())]
    if not asked:
        raise Malformed("instruction is not a text")
    prompt = _with_system(record, [{"role": "user", "content": "\n\n".join(asked)}])
    reply = {"role": "assistant", "content": record[answer]}
    return Parsed("instruction", [Example(place, prompt, [reply])], unused)


def _parse_preference(record: dict[str, Any], place: Place) -> Parsed:
    """Two answers beside a prompt, an instruction or a chat, or two chats that end differently."""
    answers = read_answers(record)
    rest = {key: value for key, value in record.items() if key not in ANSWERS}
    prompt = rest.get("prompt")
    if isinstance(prompt, str) and all(isinstance(each, str) for each in answers.values()):
        parsed = _parse_pair({**rest, "completion": answers["chosen"]}, place)
        example = replace(parsed.examples[0], rejected=answers["rejected"])
        return Parsed("preference", [example], parsed.unused)
    unused = _unused(record, *ANSWERS, *CHATS, *ASKED, "system", "tools")
    both = {name: read_answer_turns(each, name, unused) for name, each in answers.items()}
    before = _read_prompt(rest, unused) if len(both["chosen"]) == 1 else []
    turns, chosen, rejected = split_prompt(before + both["chosen"], before + both["rejected"])
    if not turns:
        raise Malformed("chosen and rejected stand beside no prompt")
    turns = _with_system(record, turns)
    example = Example(place, turns, [chosen], _read_tools(record), [rejected])
    return Parsed("preference", [example], unused)


def _read_prompt(record: dict[str, Any], unused: set[str]) -> list[Turn]:
    """The turns that one answer follows."""
    for column in CHATS:
        if column in record and not (column == "prompt" and isinstance(record[column], str)):
            return read_turns(record[column], column, unused)
    asked = [str(record[name]).strip() for name in ASKED if record.get(name)]
    return [{"role": "user", "content": "\n\n".join(asked)}] if any(asked) else []


def _with_system(record: dict[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turns, after the system turn that a record may hold in a column of its own."""
    system = record.get("system")
    if not system:
        return turns
    if not isinstance(system, str):
        raise Malformed("system is not a text")
    if turns and turns[0]["role"] == "system":
        raise Malformed("system stands beside a system turn")
    return [{"role": "system", "content": system}, *turns]


def _read_tools(record: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = parse_json(record.get("tools") or [], "tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Malformed("tools is not a list of objects")
    return tuple(tools)


def _unused(record: dict[str, Any], *used: str) -> set[str]:
    return record.keys() - {*used, *NO_ANSWERS, *ANSWERS, "weight"}
