"""Answers of a base and of versions of a store, without a server: transformers, NF4 and PEFT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.catalog import AdapterVersion
from adapters.catalog.evaluations import BASE
from adapters.checkpoint.base import read_base
from adapters.store import Store
from training.data.forms import Example
from training.data.tokens import Tokenizer
from training.errors import BaseInvalid, TrainingError
from training.evaluation.answers import Answer, Report, answer_greedily


class AnswersFailed(TrainingError):
    """The model could not be loaded, or failed while it answered."""

    code = "answers_failed"


def check_base(folder: Path, versions: Sequence[AdapterVersion]) -> None:
    """Raises BaseInvalid if a version was published for another base, or BaseUnreadable."""
    base = read_base(folder)
    for version in versions:
        if version.base_digest not in (None, base.digest):
            raise BaseInvalid(
                f"{version.label} was published for the base {version.base}, and {folder} is of "
                "another architecture or size",
                "give the folder of its own base with --base",
            )


def answer_offline(
    folder: Path,
    tokenizer: Tokenizer,
    versions: Sequence[AdapterVersion],
    store: Store,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    report: Report,
) -> dict[str, list[Answer]]:
    """The answers of the base and of each version, by label, the base first.

    The base is in NF4, as it is served. Raises AnswersFailed, DataInvalid or ObjectMissing.
    """
    paths = [store.path(version.digest) for version in versions]
    try:
        model = _load(folder, paths)
        answers = {}
        for number, label in enumerate([BASE, *(version.label for version in versions)]):
            _activate(model, number)
            answers[label] = answer_greedily(
                model,
                tokenizer,
                examples,
                max_new_tokens=max_new_tokens,
                report=lambda line, label=label: report(f"{label}: {line}"),
            )
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        raise AnswersFailed(f"the answers failed: {said}", "nothing was recorded") from error
    return answers


def _load(folder: Path, adapters: Sequence[Path]) -> Any:
    from training.qlora import load_base, silence_libraries

    silence_libraries()
    from peft import PeftModel

    base = load_base(folder, quantized=True)
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
