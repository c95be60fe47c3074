"""The form in which a model is asked: chat templates, their special tokens, the end of an answer.

Trainers save the form that they used beside the adapter. Where it differs from the base's, a server
asks the adapter in its own. Nothing here runs a template.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.store.files import (
    CHAT_TEMPLATE,
    MAX_BYTES,
    TOKENIZER,
    FileRefused,
    open_adapter_file,
)

DEFAULT, TOOLS = "default", "tool_use"  # transformers takes the second for a call with tools
END = "eos_token"
# Those that transformers gives to a template.
SPECIAL = ("bos_token", END, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_FORM_BYTES = 256 * 1024  # ten times the longest template that is known
MAX_TOKEN_CHARACTERS = 256
_MAX_VOCABULARY_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class ChatForm:
    """Texts of templates by name, and of special tokens by transformers' names. May be empty."""

    templates: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def end(self) -> str | None:
        """The token that ends an answer."""
        return self.tokens.get(END)

    def as_bytes(self) -> bytes:
        """A tokenizer_config.json that `read_form` reads, and transformers too."""
        config: dict[str, Any] = dict(self.tokens)
        if self.templates.keys() == {DEFAULT}:
            config["chat_template"] = self.templates[DEFAULT]
        elif self.templates:
            config["chat_template"] = [
                {"name": name, "template": text} for name, text in self.templates.items()
            ]
        return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"

    def uses(self, token: str) -> bool:
        """Whether a template names this special token."""
        return any(token in text for text in self.templates.values())


@dataclass(frozen=True, slots=True)
class Found:
    """The form in a folder; `added` are texts of tokens that its tokenizer has been given, and
    `unread` the names of files that are there and can't be read."""

    form: ChatForm
    added: frozenset[str]
    unread: tuple[str, ...]


def read_form(folder: Path) -> Found:
    """The form in an adapter's folder, as far as its files say. Files are untrusted."""
    return _read(folder, _read_untrusted)


def read_base_form(folder: Path) -> ChatForm:
    """The form in the folder of a model."""
    return _read(folder, _read_own).form


def own_form(adapter: ChatForm, base: ChatForm) -> ChatForm | None:
    """The form in which an adapter is asked, if it is not its base's."""
    form = ChatForm(adapter.templates or base.templates, adapter.tokens)
    tokens = {name: text for name, text in adapter.tokens.items() if form.uses(name)}
    has_other_tokens = any(base.tokens.get(name) != text for name, text in tokens.items())
    if adapter.end and base.end and adapter.end != base.end:
        tokens[END] = adapter.end
    if has_other_tokens or not _same(form.templates, base.templates):
        return ChatForm(form.templates, tokens)
    return ChatForm({}, tokens) if tokens.get(END, base.end) != base.end else None


def unknown_tokens(found: Found, form: ChatForm, base: Path) -> list[str]:
    """Tokens of an adapter's form that its base's tokenizer has not; [] where it can't be read."""
    given = {text for text in found.added if any(text in each for each in form.templates.values())}
    known = _vocabulary(base) if given or form.end else None
    if known is None:
        return []
    return sorted(given - known)


def is_known(token: str, base: Path) -> bool:
    """Whether a base's tokenizer has this token as one."""
    known = _vocabulary(base)
    return known is not None and token in known


def _same(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """transformers 5 saves templates beside the default one in a sub-folder, which is not read."""
    return all(theirs.get(name, "").strip() == text.strip() for name, text in ours.items())


def _read(folder: Path, read: Callable[[Path, str], bytes]) -> Found:
    unread = []
    config: Any = {}
    templates: dict[str, str] = {}
    try:
        config = json.loads(read(folder, TOKENIZER))
        templates.update(_list_templates(config.get("chat_template")))
    except (OSError, FileRefused, ValueError, AttributeError, RecursionError) as error:
        config, unread = {}, [TOKENIZER] * _is_fault(error)
    try:
        templates[DEFAULT] = read(folder, CHAT_TEMPLATE).decode()
    except (OSError, FileRefused, ValueError) as error:
        unread += [CHAT_TEMPLATE] * _is_fault(error)
    templates = {name: text for name, text in templates.items() if text.strip()}
    if DEFAULT not in templates:
        templates = {}
    tokens = {name: text for name in SPECIAL if (text := _token_text(config.get(name)))}
    added = frozenset(_list_added(config))
    return Found(ChatForm(templates, tokens), added, tuple(unread))


def _is_fault(error: Exception) -> bool:
    """Whether a file is there and can't be read."""
    is_missing = isinstance(error, FileRefused) and error.problem.code == "file_missing"
    return not (is_missing or isinstance(error, FileNotFoundError))


def _read_untrusted(folder: Path, name: str) -> bytes:
    with open_adapter_file(folder, name) as file:
        return file.read(MAX_BYTES[name])


def _read_own(folder: Path, name: str) -> bytes:
    with (folder / name).open("rb") as file:  # links too: a model in the hub's cache has them
        return file.read(MAX_BYTES[name])


def _list_templates(value: Any) -> Iterator[tuple[str, str]]:
    """transformers 4 keeps them in the tokenizer's config, several as a list of names and texts."""
    if isinstance(value, str):
        yield DEFAULT, value
    for each in value if isinstance(value, list) else ():
        text = each.get("template") if isinstance(each, dict) else None
        if isinstance(text, str) and each.get("name") in (DEFAULT, TOOLS):
            yield each["name"], text


def _list_added(config: Mapping[str, Any]) -> Iterator[str]:
    added = config.get("added_tokens_decoder")
    for each in added.values() if isinstance(added, dict) else ():
        if text := _token_text(each):
            yield text


def _token_text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    is_token = isinstance(value, str) and 0 < len(value) <= MAX_TOKEN_CHARACTERS
    return value if is_token else None


def _vocabulary(base: Path) -> frozenset[str] | None:
    """The tokens of the tokenizer in the folder of a model; None if it has no tokenizer.json."""
    try:
        with (base / "tokenizer.json").open("rb") as file:
            text = file.read(_MAX_VOCABULARY_BYTES)
        whole = json.loads(text)
        vocabulary = whole["model"].get("vocab") or ()
        tokens = (each if isinstance(each, str) else each[0] for each in vocabulary)
        added = (each["content"] for each in whole.get("added_tokens") or ())
        return frozenset([*tokens, *added])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
