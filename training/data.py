"""Training sets: chat messages or prompt and completion, one JSON object a line.

Reads and checks them; knows nothing about tokenizers or torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from training.errors import DataInvalid, list_problems

FEW: Final = 500
TOO_FEW: Final = 200
ROLES: Final = ("system", "user", "assistant", "tool")

Kind = Literal["messages", "prompt"]


class ChatMessage(TypedDict):
    """One turn."""

    role: str
    content: str


class Example(TypedDict):
    """A prompt and the completion to learn; both are chat turns or both are plain text."""

    prompt: list[ChatMessage] | str
    completion: list[ChatMessage] | str


class _Malformed(Exception):
    """The problem of one line."""


def read_examples(path: Path) -> list[Example]:
    """Read a set; every assistant turn of a chat becomes one example. Raises DataInvalid."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataInvalid(f"{path}: {error.strerror}", "make the data set first") from error
    examples: list[Example] = []
    problems: list[str] = []
    kinds: set[Kind] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            kind, found = _parse_line(line)
        except _Malformed as problem:
            problems.append(f"line {number}: {problem}")
        else:
            kinds.add(kind)
            examples += found
    if len(kinds) > 1:
        problems.append("chats and prompt/completion pairs are mixed")
    if not problems and not examples:
        problems.append("no examples")
    if problems:
        raise DataInvalid(f"{path}: {list_problems(problems)}", "correct the named lines")
    return examples


def size_warning(count: int) -> str | None:
    """A warning about a small set; None for a set that is large enough."""
    if count < TOO_FEW:
        return (
            f"WARNING: ONLY {count} EXAMPLES. Below {TOO_FEW} an adapter mostly learns them by "
            "heart; do not trust it outside of them."
        )
    if count < FEW:
        return f"warning: {count} examples; below {FEW} an adapter overfits easily."
    return None


def refuse_leak(train: list[Example], heldout: list[Example], path: Path) -> None:
    """Raise DataInvalid if the training set contains a held-out prompt."""
    seen = {json.dumps(example["prompt"]) for example in train}
    leaked = sum(json.dumps(example["prompt"]) in seen for example in heldout)
    if leaked:
        raise DataInvalid(
            f"{path}: {leaked} of {len(heldout)} prompts are in the training set too",
            "keep the sets apart",
        )


def file_digest(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _parse_line(line: bytes) -> tuple[Kind, list[Example]]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _Malformed("not JSON") from error
    if not isinstance(record, dict):
        raise _Malformed("not a JSON object")
    if "messages" in record:
        return "messages", _split_chat(record["messages"])
    if "prompt" in record and "completion" in record:
        return "prompt", [_check_pair(record["prompt"], record["completion"])]
    raise _Malformed("has neither messages nor prompt and completion")


def _check_pair(prompt: Any, completion: Any) -> Example:
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str) or not text.strip():
            raise _Malformed(f"{name} is not a text")
    return Example(prompt=prompt, completion=completion)


def _split_chat(turns: Any) -> list[Example]:
    if not isinstance(turns, list):
        raise _Malformed("messages is not a list")
    messages = [_check_turn(turn) for turn in turns]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise _Malformed("no assistant turn to learn")
    if answers[0] == 0:
        raise _Malformed("starts with an assistant turn")
    return [Example(prompt=messages[:i], completion=[messages[i]]) for i in answers]


def _check_turn(turn: Any) -> ChatMessage:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise _Malformed(f"a message's role is not one of {', '.join(ROLES)}")
    content = turn.get("content")
    if not isinstance(content, str) or not content.strip():
        raise _Malformed(f"a message of role {turn['role']} has no text")
    return ChatMessage(role=turn["role"], content=content)
