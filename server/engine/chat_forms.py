"""Asks an adapter that has a chat form of its own in that form: its template, tokens and end token.

vLLM renders all chats with one template, the base's. For a call to such an adapter, its renderer
gets a stand-in: a template that uses what the adapter's own uses, so that vLLM prepares messages
and arguments for that. Where transformers would compile the stand-in, it gets an `OwnForm`, which
renders the adapter's own in a process of its own (adapters/chat_form/rendering.py): it is a program
of whoever made the adapter. Prompts of other calls are made as before.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils import chat_template_utils
from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.renderers.online_renderer import OnlineRenderer

from adapters.catalog import AdapterVersion
from adapters.chat_form.form import DEFAULT, TOOLS, ChatForm, read_form
from adapters.chat_form.rendering import (
    MAX_CHARACTERS,
    Described,
    Renderer,
    TemplateFailed,
    TemplatesUnavailable,
    TemplateTooComplex,
)
from adapters.errors import StoreError
from adapters.store import AnyStore
from adapters.store.files import TOKENIZER
from adapters.sums import AdapterSum
from server.call import Call, current_call
from server.errors import InvalidRequest, RequestError, Unavailable

logger = logging.getLogger("lorry.chat_forms")

_transformers: Any = chat_template_utils

_REMEMBERED = 256  # forms, of at most 256 KiB
_PLACES = 4  # compiled or rendered at once
_WAIT_SECONDS = 10.0  # for a turn; vLLM gives up a rendering after 30 s, with all its thread's work
_FAILED_SECONDS = 60.0  # that a template which can't be compiled is not tried again
_CODE = "chat_template_failed"
_PARTS = "{% for m in messages %}{% for part in m['content'] %}{% endfor %}{% endfor %}"


class OwnForm:
    """One adapter's chat form, in the place of a compiled template of transformers."""

    environment = jinja2.Environment()

    def __init__(self, form: ChatForm, key: str, renderer: Renderer) -> None:
        self.form = form
        self._key = key
        self._renderer = renderer
        self.stand_in: str | None = None
        self.disabled_thinking_effort: Any = None  # once server/engine/messages.py has asked
        self.turn = asyncio.Lock()  # its child renders one chat at a time

    def prepare(self) -> OwnForm:
        """Compile its templates; raises TemplateFailed or TemplatesUnavailable."""
        if self.form.templates:
            described = self._renderer.describe(self._key, self.form.templates)
            self.stand_in = _stand_in(self.form, described)
        return self

    def render(self, **context: Any) -> str:
        """As a compiled template; raises TemplateFailed or TemplatesUnavailable."""
        templates = self.form.templates
        name = TOOLS if TOOLS in templates and context.get("tools") is not None else DEFAULT
        return self._renderer.render(self._key, templates, name, context | dict(self.form.tokens))

    def add_end(self, params: Any, tokenizer: Any) -> None:
        """Let its end token end answers too, as the base's does.

        The engine names it as `stop_reason`, and leaves it out of the text.
        """
        end = self.form.end
        token = tokenizer.get_vocab().get(end) if end else None
        if token is None or token == tokenizer.eos_token_id or params.ignore_eos:
            return
        params.stop_token_ids = [*(params.stop_token_ids or ()), token]
        params._all_stop_token_ids.add(token)


def _hash_form(version: AdapterVersion, folder: Path) -> str:
    """The sha256 of the form's file in hex; "" where it can't be read."""
    try:
        return hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    except OSError as error:
        logger.error("the chat form of %s can't be read: %s", version.label, error)
        return ""


def _stand_in(form: ChatForm, described: Described) -> str:
    """A template that uses what the form's own use: vLLM reads off it what to give to them.

    vllm.renderers.hf looks for the role `developer` in its text, and transformers for `content`.
    """
    words = [word for word in ("content", "'developer'", '"developer"') if form.uses(word)]
    uses = "".join(f"{{{{ {name} }}}}" for name in described.variables)
    return f"{{# {' '.join(words)} #}}{uses}{_PARTS if described.parts else ''}"


class ChatForms:
    """The forms of the versions that have one of their own, read when they are first needed."""

    def __init__(self, store: AnyStore, most: int = MAX_CHARACTERS) -> None:
        """`most`: characters of the longest prompt that the model can read."""
        self._store = store
        self._renderer = Renderer(most)
        self._places = asyncio.Semaphore(_PLACES)  # in turn, and a form asks for one at a time
        self._threads = ThreadPoolExecutor(_PLACES, "lorry-templates")
        self._known: OrderedDict[str, asyncio.Task[OwnForm]] = OrderedDict()  # by digest

    async def of(self, version: AdapterVersion | None) -> OwnForm | None:
        """None if it is asked in the base's form; raises RequestError."""
        if isinstance(version, AdapterSum):
            version = version.parts[0].version  # its parts have one form, or none
        said = version.chat_form if version is not None else None
        if version is None or said is None:
            return None
        form = self._known.get(version.digest)
        if form is None:
            # Shared by all who ask meanwhile, and no call's own: it outlives the first one's.
            form = asyncio.create_task(self._load(version, said), context=contextvars.Context())
            form.add_done_callback(partial(self._forget_failure, version.digest))
            self._known[version.digest] = form
        self._known.move_to_end(version.digest)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        try:
            return await asyncio.shield(form)
        except TemplateFailed as error:
            raise _failed(version, error) from None
        except TemplatesUnavailable:
            raise _unanswered() from None

    def _forget_failure(self, digest: str, form: asyncio.Task[OwnForm]) -> None:
        """A template's own is remembered for a while: each call would take a place for it."""
        error = None if form.cancelled() else form.exception()
        if error is None and not form.cancelled():
            return
        seconds = _FAILED_SECONDS if isinstance(error, TemplateFailed) else 0.0
        asyncio.get_running_loop().call_later(seconds, self._forget, digest, form)

    def _forget(self, digest: str, form: asyncio.Task[OwnForm]) -> None:
        if self._known.get(digest) is form:
            del self._known[digest]

    async def _load(self, version: AdapterVersion, said: Mapping[str, Any]) -> OwnForm:
        form: OwnForm = await self._run(partial(self._read, version, said))
        return form

    def _read(self, version: AdapterVersion, said: Mapping[str, Any]) -> OwnForm:
        try:
            with self._store.using(version.digest) as folder:
                digest, found = _hash_form(version, folder), read_form(folder)
        except StoreError as error:  # a bucket that is away
            logger.error("the chat form of %s can't be read: %s", version.label, error)
            raise Unavailable(
                f"The adapter {version.label} could not be loaded: {error.code}",
                code="adapter_load_failed",
                retry_after=5,
            ) from None
        if digest != said.get("sha256") or found.unread:
            raise Unavailable(
                f"The files of the adapter {version.label} are missing or damaged: publish it "
                "again.",
                code="adapter_load_failed",
                retry_after=30,
            )
        return OwnForm(found.form, version.digest, self._renderer).prepare()

    async def render(self, form: OwnForm, *arguments: Any, **options: Any) -> Any:
        """As vllm.renderers.hf.safe_apply_chat_template, in a thread of ours, when its turn comes.

        vLLM's own thread renders the chats of all others meanwhile. Raises Unavailable.
        """
        return await self._run(partial(safe_apply_chat_template, *arguments, **options), form.turn)

    async def _run(self, work: Callable[[], Any], *turns: asyncio.Lock) -> Any:
        """In a thread of ours, in its turn. Raises Unavailable.

        Turn and place last as long as the thread, also for a caller that has hung up.
        """
        with ExitStack() as held:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    waits: tuple[asyncio.Lock | asyncio.Semaphore, ...] = (*turns, self._places)
                    for each in waits:
                        await each.acquire()
                        held.callback(each.release)
            except TimeoutError:
                raise _unanswered() from None
            run = contextvars.copy_context().run  # with the call: its form is looked up there
            running = self._threads.submit(run, work)
            release = held.pop_all().close
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(release))
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._renderer.close()
        self._threads.shutdown(wait=False)


class CallRenderer(OnlineRenderer):
    """Installed by assigning `__class__`: vLLM's handlers already hold the object."""

    def attach(self, forms: ChatForms) -> None:
        self._forms = forms
        original = _transformers._compile_jinja_template
        if not isinstance(original, _Compiler):
            _transformers._compile_jinja_template = _Compiler(original)
        renderer = self.renderer
        if isinstance(renderer, HfRenderer):
            renderer._apply_chat_template_async = _applier(
                forms, renderer._apply_chat_template_async
            )

    async def preprocess_chat(
        self,
        request: Any,
        messages: list[Any],
        default_template: str | None,
        default_template_content_format: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        call = current_call.get()
        form = await self.form_of(call)
        if form is not None and form.stand_in is not None:
            default_template, default_template_content_format = form.stand_in, "auto"
        return await super().preprocess_chat(
            request,
            messages,
            default_template,
            default_template_content_format,
            *arguments,
            **options,
        )

    async def form_of(self, call: Call | None) -> OwnForm | None:
        """The form of a call's adapter, if it has one; raises VLLMValidationError."""
        if call is None:
            return None
        try:
            form = await self._forms.of(call.version)
            if form is not None and form.stand_in and not isinstance(self.renderer, HfRenderer):
                raise InvalidRequest(
                    f"The adapter {call.response_model} was trained with a chat template, which "
                    "this base's tokenizer can't render: send the prompt to /v1/completions.",
                    code=_CODE,
                )
        except RequestError as error:
            call.refusal = error
            raise VLLMValidationError(str(error)) from None
        call.chat_form = form
        return form


def _applier(forms: ChatForms, original: Any) -> Any:
    async def apply(*arguments: Any, **options: Any) -> Any:
        call = current_call.get()
        if call is None or not _stands_for(call, options.get("chat_template")):
            return await original(*arguments, **options)
        try:
            return await forms.render(call.chat_form, *arguments, **options)
        except RequestError as error:
            call.refusal = error
            raise VLLMValidationError(str(error)) from None
        except VLLMValidationError as error:
            call.refusal = _explain(call, error)
            raise

    return apply


class _Compiler:
    """transformers' `_compile_jinja_template`, which its renderer looks up when it is called."""

    def __init__(self, original: Callable[[str], Any]) -> None:
        self._original = original

    def __call__(self, chat_template: str) -> Any:
        call = current_call.get()
        if call is not None and _stands_for(call, chat_template):
            return call.chat_form
        return self._original(chat_template)


def _stands_for(call: Call, template: str | None) -> bool:
    stand_in = call.chat_form.stand_in if call.chat_form is not None else None
    return stand_in is not None and template == stand_in


def _explain(call: Call, error: VLLMValidationError) -> RequestError:
    """What safe_apply_chat_template wraps."""
    cause = error.__cause__
    if isinstance(cause, TemplatesUnavailable):
        return _unanswered()
    if isinstance(cause, TemplateFailed) and call.version is not None:
        return _failed(call.version, cause)
    return InvalidRequest(str(error), code=_CODE)


def _failed(version: AdapterVersion, error: TemplateFailed) -> InvalidRequest:
    too_complex = isinstance(error, TemplateTooComplex)
    return InvalidRequest(
        f"The chat template of {version.label} can't render these messages: {error}.",
        code="chat_template_too_complex" if too_complex else _CODE,
    )


def _unanswered() -> Unavailable:
    return Unavailable(
        "The chat template could not be rendered in time.",
        code="chat_templates_busy",
        retry_after=2,
    )
