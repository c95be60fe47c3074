"""Greedy answers of a transformers model, with or without a PEFT adapter, to whole chats or texts.

A prompt has the tokens that it has in training and in the server; an answer ends where the server
ends it. served.py asks a server instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from training.data.forms import Example
from training.data.problems import Problems
from training.data.tokens import Tokenizer
from training.errors import DataInvalid

MAX_NEW_TOKENS: Final = 256
BATCH_SIZE: Final = 16

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A text without special tokens, its number of tokens with the end, and whether it has one:
    if not, it was cut at the limit."""

    text: str
    tokens: int
    ended: bool


def answer_greedily(
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    report: Report = lambda line: None,
) -> list[Answer]:
    """Answer the prompt of each example, in their order; raises DataInvalid.

    `model` may be a PEFT model; its active adapter answers. It is left in eval mode.
    """
    prompts = encode_prompts(tokenizer, examples)
    _refuse_long(model, tokenizer, examples, prompts, max_new_tokens)
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    answers: dict[int, Answer] = {}
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found = _generate(model, tokenizer, [prompts[each] for each in batch], max_new_tokens)
        answers |= zip(batch, found, strict=True)
        report(f"{len(answers)}/{len(prompts)} answers")
    return [answers[index] for index in range(len(prompts))]


def encode_prompts(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[list[int]]:
    """The tokens of each prompt; raises DataInvalid with the lines that the template refuses."""
    problems, prompts = Problems(), []
    for example in examples:
        try:
            prompts.append(_encode_prompt(tokenizer, example))
        except _Refused as refused:
            problems.add(str(refused), example.place)
    if problems:
        raise DataInvalid(str(problems), "correct the data, or choose another base")
    return prompts


def expected_text(example: Example, tokenizer: Tokenizer | None) -> str:
    """The answer that an example expects, as a server without parsers would write it.

    Only a tool call needs the tokenizer: its form is the template's. Raises DataInvalid.
    """
    if isinstance(example.completion, str):
        return example.completion
    (turn,) = example.completion
    if "tool_calls" not in turn:
        return str(turn["content"])
    if tokenizer is None:
        problems = Problems()
        problems.add("the answer is a tool call, whose form is the chat template's", example.place)
        raise DataInvalid(str(problems), "give the base's folder with --base")
    before, whole = _render(tokenizer, example), _render(tokenizer, example, answered=True)
    ids = tokenizer.inner(whole.removeprefix(before), add_special_tokens=False)["input_ids"]
    return str(tokenizer.inner.decode(ids, skip_special_tokens=True)).strip()


class _Refused(Exception):
    """The cause for which a prompt can't be asked of this base."""


def _encode_prompt(tokenizer: Tokenizer, example: Example) -> list[int]:
    text, special = example.prompt, True
    if not isinstance(text, str):
        text, special = _render(tokenizer, example), False
    ids: list[int] = tokenizer.inner(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _render(tokenizer: Tokenizer, example: Example, *, answered: bool = False) -> str:
    from jinja2 import TemplateError

    if not tokenizer.has_template:
        raise _Refused(f"a chat, and the base {tokenizer.base} has no chat template")
    try:
        text = tokenizer.inner.apply_chat_template(
            [*example.prompt, *(example.completion if answered else ())],
            tools=list(example.tools) or None,
            tokenize=False,
            add_generation_prompt=not answered,
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        said = str(error).strip().partition("\n")[0]
        raise _Refused(f"the chat template of {tokenizer.base} refuses it: {said}") from error
    return str(text)


def _refuse_long(
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None:
        return
    problems = Problems()
    for example, prompt in zip(examples, prompts, strict=True):
        if len(prompt) + max_new_tokens > most:
            problems.add(
                f"the prompt and {max_new_tokens} tokens of an answer are more than the {most} "
                f"tokens of {tokenizer.base}",
                example.place,
            )
    if problems:
        raise DataInvalid(str(problems), "shorten the prompts, or allow shorter answers")


def _generate(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[Answer]:
    import torch

    width = max(map(len, prompts))
    ends = sorted(tokenizer.ends)
    padding = ends[0] if ends else 0  # masked, so any token will do
    ids = [[padding] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with torch.inference_mode():
        generated = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=ends or None,
            pad_token_id=padding,
        )
    return [_read(tokenizer, row) for row in generated[:, width:].tolist()]


def _read(tokenizer: Tokenizer, ids: list[int]) -> Answer:
    end = next((at for at, each in enumerate(ids) if each in tokenizer.ends), None)
    text = tokenizer.inner.decode(ids[:end], skip_special_tokens=True)
    return Answer(str(text), len(ids) if end is None else end + 1, end is not None)
