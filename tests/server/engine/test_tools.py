"""No grammar library runs in this process, no long text is parsed, and each backend takes tools."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from server.errors import GrammarTooLarge
from server.grammars.bounds import Bounds

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

BOUNDS = Bounds(bytes=1_000, depth=20, alternatives=100, repeats=1_000, number=2**64)
LARK = 'start: %json {"type": "nope"}'  # a deep pattern here ends the process


@pytest.fixture
def left(monkeypatch):
    """vLLM with its own uses of the libraries taken out."""
    from vllm import sampling_params
    from vllm.parser import abstract_parser
    from vllm.v1.structured_output import backend_guidance, backend_xgrammar

    from server.engine.grammars import leave_to_checks

    for module, name in (
        (sampling_params, "check_json_nesting"),
        (backend_xgrammar, "validate_xgrammar_grammar"),
        (backend_guidance, "validate_guidance_grammar"),
        (abstract_parser, "_xgrammar_supports"),
        (abstract_parser, "Grammar"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    leave_to_checks(BOUNDS)


@pytest.fixture
def adjusted(left):
    """What vLLM makes of a chat request that may call a strict tool."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager

    tokenizer = AutoTokenizer.from_pretrained("examples/shop/base")
    parser = ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True)

    def adjust(**fields):
        function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
        request = ChatCompletionRequest(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"type": "function", "function": function}],
            **fields,
        )
        return parser(tokenizer, request.tools).adjust_request(request)

    return adjust


@pytest.mark.parametrize("enforced", ["0", "1"])
def test_a_grammar_beside_a_strict_tool_is_left_to_the_checks(adjusted, monkeypatch, enforced):
    monkeypatch.setenv("VLLM_ENFORCE_STRICT_TOOL_CALLING", enforced)
    request = adjusted(structured_outputs={"grammar": LARK})
    assert request.structured_outputs.grammar == LARK


def test_lark_is_never_read_here(adjusted):
    from vllm.exceptions import VLLMValidationError
    from vllm.parser.abstract_parser import structured_outputs_to_format
    from vllm.sampling_params import StructuredOutputsParams

    with pytest.raises(VLLMValidationError, match="Invalid grammar"):
        structured_outputs_to_format(StructuredOutputsParams(grammar='start: "a"'))


def test_with_guidance_no_tool_is_a_structural_tag_of_xgrammar(adjusted, monkeypatch):
    from server.engine.environment import prepare
    from server.settings import Settings

    for backend, is_tag in (("guidance", False), ("xgrammar", True)):
        environ = {}
        prepare(Settings.model_construct(grammar_backend=backend), environ)
        name = "VLLM_ENFORCE_STRICT_TOOL_CALLING"
        monkeypatch.setenv(name, environ.get(name, "1"))
        wanted = adjusted(tool_choice="auto").extract_structured_outputs()
        assert (wanted is not None and wanted.structural_tag is not None) is is_tag


def test_the_text_of_a_long_structural_tag_is_not_parsed_with_the_body(left):
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    tag = '{"format": "' + "x" * 1_000 + '"}'
    with pytest.raises(GrammarTooLarge, match="max_grammar_bytes"):
        CompletionRequest(model="m", prompt="x", structured_outputs={"structural_tag": tag})
