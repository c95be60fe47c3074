"""The form in which a model is asked: its chat template, and the token that ends an answer.

A server asks every adapter in the base's form. Trainers save the form that they used beside the
adapter; where it differs, the adapter is asked otherwise than it was trained. Templates are
compared as texts, never run.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import Problem, quote
from adapters.store.files import (
    CHAT_TEMPLATE,
    MAX_BYTES,
    TOKENIZER,
    FileRefused,
    open_adapter_file,
)

SERVE_ITS_BASE = "serve a copy of the base that has the adapter's tokenizer files, or train again"


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A chat template and an end token; None where a folder does not say."""

    template: str | None
    end: str | None


def find_other_form(adapter: Path, base: Path) -> Iterator[Problem]:
    """The differences between the form of an adapter's folder and that of its base's."""
    ours, theirs = _read_form(adapter, _read_untrusted), _read_form(base, _read_own)
    if ours.template and ours.template != theirs.template:
        has = "differs from the base's" if theirs.template else "is one, and the base has none"
        said = f"{has}: a server asks in the base's form, and it was trained in another"
        yield Problem("template_differs", CHAT_TEMPLATE, said, SERVE_ITS_BASE)
    if ours.end and theirs.end and ours.end != theirs.end:
        said = (
            f"ends answers with {quote(ours.end)}, and the base with {quote(theirs.end)}: a server"
            " may not see where its answers end"
        )
        fix = f"{SERVE_ITS_BASE}; or call it with this token as `stop`"
        yield Problem("end_token_differs", TOKENIZER, said, fix)


def _read_form(folder: Path, read: Callable[[Path, str], bytes]) -> ChatForm:
    config: Any = None
    with suppress(OSError, FileRefused, ValueError, RecursionError):
        config = json.loads(read(folder, TOKENIZER))
    config = config if isinstance(config, dict) else {}
    template = _default_template(config.get("chat_template"))
    with suppress(OSError, FileRefused, ValueError):
        template = read(folder, CHAT_TEMPLATE).decode()
    return ChatForm(template and template.strip(), _token_text(config.get("eos_token")))


def _read_untrusted(folder: Path, name: str) -> bytes:
    with open_adapter_file(folder, name) as file:
        return file.read(MAX_BYTES[name])


def _read_own(folder: Path, name: str) -> bytes:
    with (folder / name).open("rb") as file:  # links too: a model in the hub's cache has them
        return file.read(MAX_BYTES[name])


def _default_template(value: Any) -> str | None:
    """transformers 4 keeps it in the tokenizer's config, several as a list of names and texts."""
    if isinstance(value, list):
        named = [each for each in value if isinstance(each, dict)]
        value = next((each.get("template") for each in named if each.get("name") == "default"), "")
    return value if isinstance(value, str) else None


def _token_text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
