"""Is an adapter's own chat form one that a server can ask it in? Judged when it is published.

Its template is run here once, on a short conversation, in a process of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.chat_form.form import (
    DEFAULT,
    MAX_FORM_BYTES,
    ChatForm,
    Found,
    is_known,
    own_form,
    read_base_form,
    read_form,
    unknown_tokens,
)
from adapters.chat_form.rendering import (
    Renderer,
    TemplateFailed,
    TemplatesUnavailable,
    TemplateTooComplex,
)
from adapters.errors import Problem, TemplateNotRun, quote
from adapters.store.files import CHAT_TEMPLATE, TOKENIZER

SERVE_ITS_BASE = "serve a copy of the base that has the adapter's tokenizer files, or train again"
_CONVERSATION = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True, slots=True)
class JudgedForm:
    """The adapter's own form, if it has one, and its end token if that is not the base's; why it is
    refused, and what to doubt."""

    form: ChatForm | None
    end: str | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def as_json(self) -> dict[str, str]:
        """What a version's provenance says of its own form."""
        said = {}
        if self.form and self.form.templates:
            texts = sorted(self.form.templates.items())
            whole = "\0".join(f"{name}\0{text}" for name, text in texts)
            said["template_sha256"] = hashlib.sha256(whole.encode(errors="replace")).hexdigest()
        if self.end:
            said["end_token"] = self.end
        return said


def judge_form(adapter: Path, base: Path) -> JudgedForm:
    """Compare an adapter's folder with its base's; raises TemplateNotRun."""
    found, theirs = read_form(adapter), read_base_form(base)
    if found.unread:
        return JudgedForm(None, problems=tuple(map(_unread, found.unread)))
    form = own_form(found.form, theirs)
    if form is None:
        return JudgedForm(None)
    problems = [*_find_problems(form, found, base)]
    warnings: list[Problem] = []
    if not problems:
        problems, warnings = _try(form)
    end = form.end if theirs.end and form.end != theirs.end else None
    if end and theirs.end and not is_known(end, base):
        warnings.append(_unknown_end(end, theirs.end))
        end = None
        if not form.templates:
            form = None  # no server can stop at it
    return JudgedForm(form, end, tuple(problems), tuple(warnings))


def _find_problems(form: ChatForm, found: Found, base: Path) -> Iterator[Problem]:
    if len(form.as_bytes()) > MAX_FORM_BYTES:
        said = f"has more than {MAX_FORM_BYTES} bytes, more than any chat template needs"
        yield Problem("template_too_large", CHAT_TEMPLATE, said, SERVE_ITS_BASE)
    if unknown := unknown_tokens(found, form, base):
        said = (
            f"is written with the token {quote(unknown[0])}, which the base's tokenizer has not:"
            " the prompts would be other tokens than in training"
        )
        yield Problem("template_tokens_unknown", CHAT_TEMPLATE, said, SERVE_ITS_BASE)


def _try(form: ChatForm) -> tuple[list[Problem], list[Problem]]:
    """The problems and the warnings of rendering a short conversation."""
    if not form.templates:
        return [], []
    renderer = Renderer()
    try:
        return _render_once(renderer, form.templates, form.tokens)
    except TemplatesUnavailable as error:
        raise TemplateNotRun(
            "the process that runs chat templates did not start, or has failed", "try again"
        ) from error
    finally:
        renderer.close()


def _render_once(
    renderer: Renderer, templates: Mapping[str, str], tokens: Mapping[str, str]
) -> tuple[list[Problem], list[Problem]]:
    context: dict[str, Any] = {
        **tokens,
        "messages": _CONVERSATION,
        "add_generation_prompt": True,
        "tools": None,
    }
    try:
        described = renderer.describe("", templates)
    except TemplateFailed as error:
        return [_unusable(error)], []
    if described.parts:
        content = [{"type": "text", "text": "Hello"}]
        context["messages"] = [{"role": "user", "content": content}]
    try:
        renderer.render("", templates, DEFAULT, context)
    except TemplateTooComplex as error:
        return [_unusable(error)], []
    except TemplateFailed as error:
        said = f"refuses a conversation of one user message: {quote(str(error))}"
        fix = "call it with the messages that it was trained on"
        return [], [Problem("template_refuses", CHAT_TEMPLATE, said, fix)]
    return [], []


def _unusable(error: TemplateFailed) -> Problem:
    said = f"can't be used as a chat template: {quote(str(error))}"
    return Problem("template_unusable", CHAT_TEMPLATE, said, "mend it, or " + SERVE_ITS_BASE)


def _unread(name: str) -> Problem:
    said = "is there, and can't be read: it may say in which form the adapter was trained"
    fix = "write it again, or remove it if the adapter was trained in its base's form"
    return Problem("form_unreadable", name, said, fix)


def _unknown_end(ours: str, theirs: str) -> Problem:
    said = (
        f"ends answers with {quote(ours)}, which is no token of the base (it ends them with"
        f" {quote(theirs)}): a server does not see where its answers end"
    )
    fix = f"{SERVE_ITS_BASE}; or call it with this text as `stop`"
    return Problem("end_token_differs", TOKENIZER, said, fix)
