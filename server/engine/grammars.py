"""The grammar of a request, settled before any code of vLLM compiles it.

vLLM checks grammars with native libraries in the server's process and on its event loop, where one
deep pattern ends the process. Here no such library runs in it: `leave_to_checks` takes vLLM's own
checks out, and `Grammars` has each grammar bounded, and compiled in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
from copy import copy
from functools import wraps
from typing import Any

from vllm import sampling_params
from vllm.parser import abstract_parser
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output import backend_guidance, backend_xgrammar
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from server.errors import GrammarRefused
from server.grammars.bounds import Bounds, Grammar, Kind
from server.grammars.checks import GrammarChecks
from server.grammars.process import Start
from server.kernels.versions import patch
from server.settings import Settings

_KINDS: tuple[Kind, ...] = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_BYTES_PER_MIB = 1024 * 1024
_LARGE_BYTES = 16 * 1024  # read in a thread: it would hold the event loop

# Where a JSON schema has others: under names, or directly.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DIRECT = frozenset(
    {"items", "prefixItems", "additionalItems", "contains", "additionalProperties", "anyOf"}
    | {"oneOf"}
)
# Keywords beside which `properties` does not name all that an object may have.
_OPEN = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"}
    | {"allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas"}
)


@patch("0.32")
def leave_to_checks(bounds: Bounds) -> None:
    """Take vLLM's uses of grammar libraries out of this process; it looks these up when called.

    What is left parses the JSON of a structural tag with the body, which holds Python's lock.
    """
    original = sampling_params.check_json_nesting

    @wraps(original)
    def check_json_nesting(spec: Any, **options: Any) -> None:
        if isinstance(spec, str):
            bounds.check_length(spec)
        original(spec, **options)

    sampling_params.check_json_nesting = check_json_nesting
    backend_xgrammar.validate_xgrammar_grammar = _skip
    backend_guidance.validate_guidance_grammar = _skip
    # vLLM may join the grammar of a call with one for its tools. It translates Lark for that.
    abstract_parser._xgrammar_supports = _can_join_tools
    abstract_parser.Grammar = _NoLark


def _skip(*_arguments: Any, **_options: Any) -> None:
    return None


def _can_join_tools(wanted: StructuredOutputsParams) -> bool:
    """Whether vLLM needs no library, and parses no text of any length, to join it with tools."""
    return wanted.grammar is None and not isinstance(wanted.json, str)


class _NoLark:
    """In the place of xgrammar.Grammar."""

    @staticmethod
    def from_lark(_: str) -> None:
        raise ValueError("only the grammar process reads Lark")


class Grammars:
    """`tokenizer` is the base's; `vocabulary` is how many ids the model knows.

    `whitespace`: answers may have white space wherever JSON allows it.
    """

    def __init__(
        self, settings: Settings, tokenizer: Any, vocabulary: int, whitespace: bool
    ) -> None:
        self._backend = settings.grammar_backend
        self.bounds = Bounds(
            bytes=settings.max_grammar_bytes,
            depth=settings.max_grammar_depth,
            alternatives=settings.max_grammar_alternatives,
            repeats=settings.max_grammar_repeats,
            number=settings.max_grammar_number,
        )
        self._settings = settings
        self._tokenizer = tokenizer
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._whitespace = whitespace
        self.checks = GrammarChecks(self._describe)

    async def settle(self, wanted: StructuredOutputsParams, caller: str) -> StructuredOutputsParams:
        """The same grammar, proven to compile within the limits.

        Raises RequestError: it is too large, refused, too complex, or could not be checked now.
        """
        kind = next((each for each in _KINDS if getattr(wanted, each) is not None), None)
        if kind is None or (kind in ("json_object", "choice") and not getattr(wanted, kind)):
            return wanted  # vLLM refuses it by itself
        grammar = Grammar.of(kind, getattr(wanted, kind))
        is_large = len(grammar.text) > _LARGE_BYTES
        prepared = (
            await asyncio.to_thread(self._prepare, grammar) if is_large else self._prepare(grammar)
        )
        settled = await self.checks.check(prepared, caller)
        if settled.kind == "json_object":
            return wanted
        changed = copy(wanted)
        changed.__dict__ |= dict.fromkeys(_KINDS) | {settled.kind: settled.text}
        return changed

    def _prepare(self, grammar: Grammar) -> Grammar:
        """The grammar, within the bounds, as this backend takes it."""
        self.bounds.check(grammar)
        kind, text = grammar.kind, grammar.text
        if kind == "json":
            schema = json.loads(text)
            if self._backend == "guidance":
                return Grammar(kind, json.dumps(closed(schema)))
            if backend_xgrammar.has_xgrammar_unsupported_json_features(schema):
                raise GrammarRefused(
                    "The schema has keywords that the backend xgrammar does not support; the "
                    "operator can start the server with --grammar-backend guidance."
                )
        if self._backend == "xgrammar":
            if kind == "choice":
                return Grammar("grammar", choice_as_grammar(json.loads(text)))
            if kind == "grammar" and grammar_is_likely_lark(text):
                return Grammar("lark", text)
        return grammar

    def _describe(self) -> Start:
        end = self._tokenizer.eos_token_id
        return Start(
            backend=self._backend,
            tokenizer=self._serialized(),
            vocabulary=self._vocabulary,
            end_tokens=[] if end is None else [int(end)],
            seconds=self._settings.max_grammar_seconds,
            memory_bytes=self._settings.max_grammar_mib * _BYTES_PER_MIB,
            whitespace=self._whitespace,
        )

    def _serialized(self) -> str:
        if self._backend == "xgrammar":
            from xgrammar import TokenizerInfo

            info = TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=self._vocabulary)
            return str(info.serialize_json())
        # As llguidance.hf.from_tokenizer does.
        fast = copy(self._tokenizer.backend_tokenizer)
        fast.no_padding()
        fast.no_truncation()
        return str(fast.to_str())


def closed(schema: Any) -> Any:
    """The schema whose objects have only the properties that they name, unless they say otherwise.

    JSON Schema allows any others. Callers expect what OpenAI's strict mode and xgrammar do. The
    members of `allOf` stay open: they are one object, and each names a part of it.
    """
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed_below(key, value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not _OPEN & schema.keys():
        made["additionalProperties"] = False
    return made


def _closed_below(key: str, value: Any) -> Any:
    if key in _DIRECT:
        return closed(value)
    if key in _NAMED and isinstance(value, dict):
        return {name: closed(each) for name, each in value.items()}
    return value
