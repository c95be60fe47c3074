"""Which model a text means: a folder of this machine, or a model of the Hugging Face hub.

    FOLDER                  is meant where it is there, as in transformers
    ORG/NAME[@REVISION]     is fetched into the hub's cache; hf:// may stand before it

Every command that takes a base finds it here. Weights are safetensors only: nothing that runs code
when it is read is fetched, and what is of another form is refused with what to take instead.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from adapters import hub
from adapters.errors import (
    BaseNotCached,
    BaseNotFound,
    BaseUnreadable,
    BaseUnsupported,
    quote,
)
from adapters.hub import HubModel, Report

CONFIG = ("config.json",)
# Without weights: how it is asked. transformers names a tokenizer's files in these ways.
FORM = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
WEIGHTS = "*.safetensors"
GGUF = ".gguf"
WHOLE = (*FORM, WEIGHTS, "LICENSE*")
# What llama.cpp appends to a model's name.
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
QUANTIZED = re.compile(r"[-.](UD-)?(I?Q\d\w*|TQ\d\w*|MXFP4\w*|[BF]F?16|F32)$", re.I)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ANOTHER = "give a model's folder, or ORG/NAME[@REVISION] of the Hugging Face hub"


def silent(line: str) -> None:
    """Report nothing."""


def find_model(text: str, parts: Sequence[str] = WHOLE, report: Report = silent) -> Path:
    """The folder of the model that `text` means, with at least the files of `parts`.

    Raises BaseNotFound for neither a folder nor an id, BaseUnsupported for weights of another form,
    or what `hub.fetch` raises.
    """
    if text.lower().endswith(GGUF):
        raise _gguf(f"{quote(text)} is a GGUF file", _guess_source(text))
    folder = Path(text)
    if text and _is_folder(folder):  # Path("") is the working folder
        _check_folder(folder, parts)
        return folder
    model = as_id(text)
    if model is None:
        raise BaseNotFound(f"there is no such folder: {quote(text)}", ANOTHER)
    folder = hub.fetch(model, parts, report)
    _check_fetched(model, folder, parts)
    return folder


def find_shape(text: str, report: Report = silent) -> Path:
    """The folder of a model for `read_base`, with its chat template and tokenizer.

    Weights are fetched only where the config does not say what they are. Raises as `find_model` and
    `read_base` do.
    """
    from adapters.checkpoint.base import read_base  # imports numpy: settings need only a name

    folder = find_model(text, FORM, report)
    try:
        read_base(folder)
    except BaseUnreadable:
        if as_id(text) is None:
            raise
        folder = find_model(text, WHOLE, report)
    return folder


def as_id(text: str) -> HubModel | None:
    """The model of the hub that a text means; None for what is here, or can be no id."""
    try:
        is_here = Path(text).exists()
    except (OSError, ValueError):  # it is too long for a path, or holds a NUL
        return None
    return None if is_here else hub.parse_id(text)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def name_model(text: str) -> str:
    """A model's name for callers: ORG/NAME of an id and of a folder in the hub's cache, else the
    folder's name."""
    model = as_id(text) or hub.model_of(Path(text))
    return model.repo if model else Path(text).resolve().name


def _check_folder(folder: Path, parts: Sequence[str]) -> None:
    names = _list(folder)
    found = hub.CACHED.fullmatch(folder.resolve().name)
    if found and "snapshots" in names:
        repo = hub.repo_of(found)
        raise BaseUnreadable(
            f"{quote(str(folder))} is the hub's cache of all that was fetched of {repo}",
            f"give {repo}, or one of the folders in its snapshots",
        )
    if "config.json" not in names or WEIGHTS in parts:
        _refuse_other_weights(quote(str(folder)), names)


def _check_fetched(model: HubModel, folder: Path, parts: Sequence[str]) -> None:
    """Raise an error unless what is needed is there; the library knows only what it has listed."""
    from adapters.checkpoint.base import weights_files

    names = _list(folder)
    has_config = "config.json" in names
    weights = weights_files(folder) if has_config and WEIGHTS in parts else [folder]
    if has_config and weights and all(path.exists() for path in weights):
        return
    if hub.is_offline():
        raise BaseNotCached(
            f"the hub's cache holds only a part of the model {quote(str(model))}",
            "unset HF_HUB_OFFLINE, so that the rest is fetched",
        )
    facts = hub.describe(model)
    _refuse_other_weights(quote(model.repo), facts.files, facts.made_from)
    what = "safetensors" if has_config else "config.json"
    raise BaseUnreadable(f"the model {quote(model.repo)} has no {what}, or not all", ANOTHER)


def _list(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []  # reported by who reads the config


def _refuse_other_weights(where: str, names: Collection[str], made_from: str | None = None) -> None:
    """Raise BaseUnsupported for GGUF files, or pickles, without safetensors beside them."""
    if any(name.endswith(".safetensors") and "/" not in name for name in names):
        return
    if found := sorted(name for name in names if name.lower().endswith(GGUF)):
        raise _gguf(f"{where} holds GGUF files only", made_from or _guess_source(found[0]))
    if any(name.endswith(PICKLES) for name in names):
        raise BaseUnsupported(
            f"{where} holds pickled weights only, which can run code when they are read",
            "take a copy in safetensors; where you trust it, transformers' from_pretrained and"
            " save_pretrained make one",
        )


def _gguf(said: str, source: str) -> BaseUnsupported:
    return BaseUnsupported(
        f"{said}: llama.cpp's format, which is not served, and no base of an adapter",
        f"give the model that it was made from, {source}: `lorry serve` quantizes it by itself",
    )


def _guess_source(name: str) -> str:
    """What a GGUF file was made from, by its name: NAME-Q4_K_M-00001-of-00002.gguf."""
    stem = Path(name).name[: -len(GGUF)]
    stem = QUANTIZED.sub("", SHARD.sub("", stem))
    return f"probably {quote(stem)}, in safetensors"
