"""Examples as tokens and labels: the answer and its end are learnt, the prompt is not.

The tokens are those that the server computes for the same call, so that what is learnt is what is
asked. Knows transformers' tokenizers, nothing of models or of torch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from training.data.forms import Example
from training.data.problems import Place, Problems, name_places
from training.data.sets import DataSet
from training.data.turns import REASONING, Turn
from training.errors import BaseInvalid, DataInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED: Final = -100  # the label that torch's loss leaves out


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A base's tokenizer, and the tokens at which a server of this base ends an answer."""

    base: str
    inner: "PreTrainedTokenizerBase"
    ends: frozenset[int]

    @property
    def end(self) -> int | None:
        """The end that is added where a template has none."""
        eos: int | None = self.inner.eos_token_id
        return min(self.ends, default=None) if eos is None else eos

    @property
    def has_template(self) -> bool:
        return bool(self.inner.chat_template)


# input_ids and labels; of a preference prompt_ids, chosen_ids and rejected_ids, as TRL has them.
Row = dict[str, list[int]]


@dataclass(slots=True)
class Encoded:
    """The sequences of a set. Lengths are those before the cut at `max_length`."""

    max_length: int
    rows: list[Row] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    answer_lengths: list[int] = field(default_factory=list)
    cut: list[Place] = field(default_factory=list)
    filled: list[Place] = field(default_factory=list)
    endless: int = 0
    rewritten: list[Place] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    @property
    def tokens(self) -> int:
        """How many tokens an epoch has."""
        return sum(len(ids) for row in self.rows for key, ids in row.items() if key != "labels")

    def warnings(self, tokenizer: Tokenizer) -> list[str]:
        said = []
        count = len(self.lengths)
        if self.cut:
            said.append(
                f"WARNING: {len(self.cut):,} of {count:,} answers are cut at max_length "
                f"{self.max_length}, and an answer without its end teaches the adapter never to "
                f"stop. The longest example has {max(self.lengths):,} tokens: raise "
                f"optimization.max_length, or shorten {name_places(self.cut)}"
            )
        if self.endless:
            said.append(_warn_endless(tokenizer))
        if self.rewritten:
            said.append(
                f"warning: the chat template writes {len(self.rewritten):,} of {count:,} prompts "
                f"otherwise when an answer follows: {name_places(self.rewritten)}"
            )
        return said


def load_tokenizer(folder: Path, name: str) -> Tokenizer:
    """Load the tokenizer of a model folder; raises BaseInvalid."""
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = str(error).strip().partition("\n")[0]
        raise BaseInvalid(
            f"{folder}: its tokenizer cannot be loaded: {said}", "give the folder of a saved model"
        ) from error
    return Tokenizer(name, inner, _find_ends(folder, inner.eos_token_id))


def encode_set(
    data: DataSet, tokenizer: Tokenizer, max_length: int, *, completion_only: bool = True
) -> Encoded:
    """Turn the examples into rows of `input_ids` and `labels`; collects the problems."""
    found = Encoded(max_length)
    if data.is_chat and not tokenizer.has_template:
        found.problems.add(
            f"chats, and the base {tokenizer.base} has no chat template",
            Place(", ".join(data.sources), 0),
        )
        return found
    template = _Template(tokenizer)
    for example in data.examples:
        try:
            _encode(example, template, found, completion_only)
        except _Refused as problem:
            found.problems.add(str(problem), example.place)
    return found


def require_encoded(found: Encoded) -> None:
    """Raise DataInvalid if a set cannot be learnt as it is."""
    if found.problems:
        raise DataInvalid(
            str(found.problems),
            "correct the data, choose another base, or raise optimization.max_length",
        )


class _Refused(Exception):
    """The cause for which an example cannot be learnt on this base."""


class _Template:
    """A chat template, and which features of an example it uses: asked once for each feature."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._uses: dict[str, bool] = {}

    def tokenize(self, example: Example) -> tuple[list[int], list[int]]:
        """The tokens of the prompt, and those of prompt and completion."""
        inner = self.tokenizer.inner
        if isinstance(example.prompt, str) and isinstance(example.completion, str):
            texts, special = [example.prompt, example.prompt + example.completion], True
        else:
            self._refuse_ignored(example)
            texts, special = [self._render(example), self._render(example, answered=True)], False
        prompt, whole = (
            inner(text, add_special_tokens=special, verbose=False)["input_ids"] for text in texts
        )
        return prompt, whole

    def _refuse_ignored(self, example: Example) -> None:
        for feature, without in FEATURES.items():
            reduced = without(example)
            if reduced == example:
                continue
            if feature not in self._uses:
                self._uses[feature] = self._differs(example, reduced)
            if not self._uses[feature]:
                raise _Refused(f"the chat template of {self.tokenizer.base} ignores {feature}")

    def _differs(self, example: Example, reduced: Example) -> bool:
        whole = self._render(example, answered=True)
        try:
            return whole != self._render(reduced, answered=True)
        except _Refused:
            return True

    def _render(self, example: Example, *, answered: bool = False) -> str:
        from jinja2 import TemplateError

        turns = [*example.prompt, *(example.completion if answered else ())]
        try:
            text = self.tokenizer.inner.apply_chat_template(
                turns,
                tools=list(example.tools) or None,
                tokenize=False,
                add_generation_prompt=not answered,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            said = str(error).strip().partition("\n")[0]
            raise _Refused(
                f"the chat template of {self.tokenizer.base} refuses it: {said}"
            ) from error
        assert isinstance(text, str)
        return text


def _encode(example: Example, template: _Template, found: Encoded, completion_only: bool) -> None:
    start, ids = _encode_answer(example, template, found)
    if example.rejected is None:
        masked = start if completion_only else 0
        found.rows.append({"input_ids": ids, "labels": [IGNORED] * masked + ids[masked:]})
        return
    worse = replace(example, completion=example.rejected, rejected=None)
    other_start, other = _encode_answer(worse, template, found)
    if ids == other:
        raise _Refused(f"max_length {found.max_length} cuts chosen and rejected to the same answer")
    start = min(start, other_start)
    found.rows.append(
        {"prompt_ids": ids[:start], "chosen_ids": ids[start:], "rejected_ids": other[start:]}
    )


def _encode_answer(example: Example, template: _Template, found: Encoded) -> tuple[int, list[int]]:
    """Where the answer starts in the tokens, and the tokens up to its end; notes what is wrong."""
    tokenizer = template.tokenizer
    prompt, whole = template.tokenize(example)
    # A token may join the end of the prompt and the start of the answer: it is learnt.
    start = _count_shared(prompt, whole)
    ended, is_added = _end(whole, start, tokenizer)
    found.lengths.append(len(ended))
    found.answer_lengths.append(len(ended) - start)
    if start >= found.max_length:
        found.filled.append(example.place)
        raise _Refused(
            f"the prompt alone fills max_length {found.max_length}, and nothing of the answer is "
            "left"
        )
    if len(ended) > found.max_length:
        found.cut.append(example.place)
    if isinstance(example.prompt, list):
        found.endless += is_added
        if start < len(prompt):
            found.rewritten.append(example.place)
    return start, ended[: found.max_length]


def _count_shared(prompt: list[int], whole: list[int]) -> int:
    pairs = enumerate(zip(prompt, whole, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(prompt), len(whole)))


def _end(ids: list[int], start: int, tokenizer: Tokenizer) -> tuple[list[int], bool]:
    """The tokens up to the end of the turn, and whether it was missing and is added.

    What a template writes behind it, as a newline, is the start of the next turn.
    """
    last = next((at for at in range(len(ids) - 1, start - 1, -1) if ids[at] in tokenizer.ends), -1)
    if last >= start and not str(tokenizer.inner.decode(ids[last + 1 :])).strip():
        return ids[: last + 1], False
    return ids if tokenizer.end is None else [*ids, tokenizer.end], True


def _warn_endless(tokenizer: Tokenizer) -> str:
    said = (
        f"WARNING: the chat template of {tokenizer.base} does not end an answer with a token at "
        "which a server stops"
    )
    if tokenizer.end is None:
        return f"{said}, and the base has no end token: the adapter never learns to stop."
    end = tokenizer.inner.convert_ids_to_tokens(tokenizer.end)
    return (
        f"{said}. {end} is added to each answer, so that the adapter learns to stop; a base whose "
        "template ends its turns is the better choice."
    )


def _find_ends(folder: Path, eos: int | None) -> frozenset[int]:
    """The tokenizer's end token and those of the generation config, as vLLM takes them."""
    ends = {eos}
    for name in ("generation_config.json", "config.json"):
        try:
            told = json.loads((folder / name).read_bytes()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ends.update(told if isinstance(told, list) else [told])
        break
    return frozenset(end for end in ends if isinstance(end, int))


def _without(*keys: str) -> Callable[[Sequence[Turn]], list[Turn]]:
    return lambda turns: [
        {key: value for key, value in turn.items() if key not in keys} for turn in turns
    ]


def _drop_key(key: str, *, in_prompt: bool) -> Callable[[Example], Example]:
    def drop(example: Example) -> Example:
        assert not isinstance(example.prompt, str)
        assert not isinstance(example.completion, str)
        prompt = _without(key)(example.prompt) if in_prompt else example.prompt
        return replace(example, prompt=prompt, completion=_without(key)(example.completion))

    return drop


def _drop_role(role: str) -> Callable[[Example], Example]:
    def drop(example: Example) -> Example:
        assert not isinstance(example.prompt, str)
        return replace(example, prompt=[turn for turn in example.prompt if turn["role"] != role])

    return drop


# What a template may ignore silently: the example without it. Templates leave the reasoning of
# earlier turns out on purpose, so only that of the answer counts.
FEATURES: Final[dict[str, Callable[[Example], Example]]] = {
    "tools": lambda example: replace(example, tools=()),
    "tool_calls": _drop_key("tool_calls", in_prompt=True),
    **{key: _drop_key(key, in_prompt=False) for key in REASONING},
    "system turns": _drop_role("system"),
    "tool turns": _drop_role("tool"),
}
