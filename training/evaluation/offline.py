"""Answers of a base and of versions of a store, without a server: transformers, NF4 and PEFT."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.catalog import AdapterVersion
from adapters.catalog.evaluations import BASE
from adapters.checkpoint.base import read_base
from adapters.models import find_model, find_shape
from adapters.store import AnyStore
from training.data.forms import Example
from training.data.tokens import Tokenizer, load_tokenizer
from training.errors import BaseInvalid, TrainingError
from training.evaluation.answers import Answer, Report, answer_greedily, prefixed


class AnswersFailed(TrainingError):
    """The model could not be loaded, or failed while it answered."""

    code = "answers_failed"


@dataclass(frozen=True, slots=True)
class OfflineBase:
    """A base's folder and its tokenizer; the model is loaded when it answers."""

    folder: Path
    tokenizer: Tokenizer


def open_base(
    where: str | None, versions: Sequence[AdapterVersion], report: Report, *, required: bool
) -> OfflineBase | None:
    """The base of some versions, or None where it is neither given nor required.

    Raises BaseInvalid, also if a version was published for another base, or an AdapterError.
    """
    if where is None:
        if not required:
            return None
        raise BaseInvalid(
            f"{versions[0].label} needs its base, {versions[0].base}, to answer",
            "give it with --base, or a running server with --url",
        )
    folder = find_model(where, report=report) if required else find_shape(where, report)
    base = read_base(folder)
    for version in versions:
        if version.base_digest not in (None, base.digest):
            raise BaseInvalid(
                f"{version.label} was published for the base {version.base}, and {where} is of "
                "another architecture or size",
                "give its own base with --base",
            )
        if version.chat_form is not None:
            raise BaseInvalid(
                f"{version.label} is asked in a chat form of its own, which a server has",
                "judge it by a running server, with --url",
            )
    return OfflineBase(folder, load_tokenizer(folder, base.name))


def answer_offline(
    base: OfflineBase,
    versions: Sequence[AdapterVersion],
    store: AnyStore,
    examples: Sequence[Example],
    max_new_tokens: int,
    report: Report,
) -> dict[str, list[Answer]]:
    """The answers of the base and of each version, by label, the base first.

    The base is in NF4, as it is served. Raises AnswersFailed, DataInvalid, ObjectMissing or
    ObjectDamaged.
    """
    with ExitStack() as stack:
        paths = [stack.enter_context(store.using(version.digest)) for version in versions]
        for version in versions:
            store.verify(version.digest)
        try:
            model = _load(base.folder, paths)
            answers = {}
            for number, label in enumerate([BASE, *(version.label for version in versions)]):
                _activate(model, number)
                answers[label] = answer_greedily(
                    model,
                    base.tokenizer,
                    examples,
                    max_new_tokens=max_new_tokens,
                    report=prefixed(report, label),
                )
        except (RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().partition("\n")[0]
            raise AnswersFailed(f"the answers failed: {said}", "nothing was recorded") from error
    return answers


def _load(folder: Path, adapters: Sequence[Path]) -> Any:
    from training.qlora import load_base, silence_libraries

    silence_libraries()
    base = load_base(folder, quantized=True)
    from peft import PeftModel  # only now: load_base silences what bitsandbytes says at import

    first, *others = adapters
    model = PeftModel.from_pretrained(base, first, adapter_name=_name(1))
    for number, path in enumerate(others, start=2):
        model.load_adapter(path, adapter_name=_name(number))
    return model


def _activate(model: Any, number: int) -> None:
    """Let the base (0) or one of the adapters answer."""
    if number == 0:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(_name(number))


def _name(number: int) -> str:
    return f"version{number}"
