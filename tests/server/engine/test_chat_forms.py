"""Templates of adapters render as transformers renders them, with what vLLM would give to them.

The templates are TRL's, of the models that people train.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from adapters.chat_form.form import ChatForm
from adapters.chat_form.rendering import Renderer, TemplateFailed
from adapters.chat_form.worker import loops_over_contents, make_environment

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
TOOL_CALL = {
    "type": "function",
    "id": "abcdefghi",
    "function": {"name": "f", "arguments": {"x": 1}},
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hé <b>\n"}],
    [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "B"},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "7"},
    ],
]


@pytest.fixture(scope="module")
def renderer():
    renderer = Renderer()
    yield renderer
    renderer.close()


def rendered(make) -> str:
    try:
        return str(make())
    except Exception as error:  # noqa: BLE001 - each template and library has its own
        return f"refused: {error}"[:60]


def test_a_template_renders_as_in_transformers(renderer) -> None:
    assert len(TEMPLATES) > 40
    wrong = []
    for path in TEMPLATES:
        template = path.read_text()
        for chat in CHATS:
            for tools in (None, TOOLS):
                context = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}
                context |= {"tools": tools, "add_generation_prompt": True}

                def theirs(template=template, chat=chat, context=context):
                    return chat_template_utils.render_jinja_template(
                        [chat], chat_template=template, **context
                    )[0][0]

                def ours(template=template, chat=chat, context=context, key=path.name):
                    whole = context | {"messages": chat, "documents": None}
                    return renderer.render(key, {"default": template}, "default", whole)

                if rendered(theirs) != rendered(ours):
                    wrong.append((path.name, rendered(theirs), rendered(ours)))
    assert wrong == []


def test_contents_are_given_as_vllm_would_give_them() -> None:
    from vllm.renderers.hf import _detect_content_format

    wrong = []
    for path in TEMPLATES:
        template = path.read_text()
        parts = loops_over_contents(make_environment().parse(template))
        if (_detect_content_format(template, default="string") == "openai") != parts:
            wrong.append(path.name)
    assert wrong == []


def test_vllm_reads_the_same_off_the_stand_in(renderer) -> None:
    from vllm.renderers.hf import (
        _detect_content_format,
        _detect_developer_role_support,
        _resolve_chat_template_kwargs,
    )

    from server.engine.chat_forms import OwnForm

    wrong = []
    for path in TEMPLATES:
        template = path.read_text()
        form = OwnForm(ChatForm({"default": template}), path.name, renderer).prepare()
        ours, theirs = (
            (
                _detect_content_format(text, default="string"),
                _detect_developer_role_support(text),
                _resolve_chat_template_kwargs(text)
                - {"messages", "raise_exception", "strftime_now"},
            )
            for text in (form.stand_in, template)
        )
        if ours != theirs:
            wrong.append((path.name, ours, theirs))
    assert wrong == []


@pytest.fixture
def call(monkeypatch):
    """The current call, whose adapter has this form."""
    from server.call import current_call
    from server.engine.chat_forms import _Compiler

    original = chat_template_utils._compile_jinja_template
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", _Compiler(original))
    call = SimpleNamespace(chat_form=None)
    token = current_call.set(call)  # type: ignore[arg-type]
    yield call
    current_call.reset(token)


def test_transformers_renders_the_adapters_template_for_its_stand_in(renderer, call) -> None:
    from server.engine.chat_forms import OwnForm

    tokenizer = AutoTokenizer.from_pretrained("examples/shop/base")
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    form = OwnForm(
        ChatForm({"default": template, "tool_use": "tools"}, {"bos_token": "<s>"}), "k", renderer
    )
    call.chat_form = form.prepare()
    for options in (
        {"add_generation_prompt": True},
        {"continue_final_message": True},
    ):
        ours = tokenizer.apply_chat_template(
            CHATS[1][:3], chat_template=form.stand_in, tokenize=False, **options
        )
        theirs = tokenizer.apply_chat_template(
            CHATS[1][:3],
            chat_template=template,
            tokenize=False,
            **options,
            bos_token="<s>",
        )
        assert ours == theirs
    with_tools = tokenizer.apply_chat_template(
        CHATS[0], chat_template=form.stand_in, tools=TOOLS, tokenize=False
    )
    assert with_tools == "tools"
    call.chat_form = None
    plain = tokenizer.apply_chat_template(CHATS[0], tokenize=False)
    assert plain.startswith("<|user|>")


def test_an_end_token_is_added_to_those_that_stop(renderer) -> None:
    from vllm import SamplingParams

    from server.engine.chat_forms import OwnForm

    tokenizer = AutoTokenizer.from_pretrained("examples/shop/base")

    def stops(end: str, **options: Any) -> tuple[list[int], set[int]]:
        params = SamplingParams(**options)
        OwnForm(ChatForm({}, {"eos_token": end}), "k", renderer).add_end(params, tokenizer)
        return params.stop_token_ids, params.all_stop_token_ids

    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert stops("<|user|>") == ([user], {user})
    assert stops("<|user|>", stop_token_ids=[3]) == ([3, user], {3, user})
    assert stops("<|user|>", ignore_eos=True) == ([], set())
    assert stops("<|end|>") == ([], set())  # the base's own ends it as it is
    assert stops("no token") == ([], set())


def test_a_broken_template_is_a_refusal(renderer) -> None:
    from server.engine.chat_forms import OwnForm

    with pytest.raises(TemplateFailed):
        OwnForm(ChatForm({"default": "{% for"}), "broken", renderer).prepare()
