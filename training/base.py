"""The files of the frozen base model and the digests that identify it.

Knows nothing about torch, nor where models come from (adapters/models.py).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters import hub
from adapters.hub import HubModel
from adapters.models import FORM, find_model, silent
from training.errors import BaseInvalid
from training.progress import Report

TOKENIZER_FILES: Final = ("*.json", "*.jinja", "*.model")
INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Base:
    """A base model's folder, name and digests; `origin` is the model and the commit on the hub of
    one that comes from there. `asked_for` is what the recipe names."""

    folder: Path
    asked_for: str
    name: str
    config_digest: str
    weights_digest: str
    tokenizer_digest: str  # with the chat template and the end tokens
    origin: HubModel | None = None

    def facts(self) -> dict[str, str]:
        """The fields that travel with an adapter: all but its place on this machine."""
        facts = {
            "name": self.name,
            "config_digest": self.config_digest,
            "weights_digest": self.weights_digest,
            "tokenizer_digest": self.tokenizer_digest,
        }
        if self.origin:
            facts |= {"repo": self.origin.repo, "commit": self.origin.revision or ""}
        return facts

    @property
    def address(self) -> tuple[str, str | None]:
        """What others load it by: its id and the revision, if one was chosen; else its folder."""
        if self.origin is None:
            return str(self.folder.resolve()), None
        asked = None if Path(self.asked_for).is_dir() else hub.parse_id(self.asked_for)
        return self.origin.repo, (asked or self.origin).revision


def find_base(where: str, name: str, report: Report = silent) -> Base:
    """Find a base by folder or hub id and hash it; raises BaseInvalid or an AdapterError."""
    folder = find_model(where, report=report)
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not config.is_file() or not weights:
        missing = "*.safetensors" if config.is_file() else "config.json"
        raise BaseInvalid(f"{folder}: has no {missing}", "give the folder of a saved model")
    return Base(
        folder,
        where,
        name,
        file_digest(config),
        _digest_all(weights),
        _digest_tokenizer(folder),
        hub.model_of(folder),
    )


def find_tokenizer(where: str, report: Report = silent) -> Path:
    """Find the folder of a base's tokenizer, or fetch it without the weights."""
    return find_model(where, FORM, report)


def file_digest(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _digest_all(files: list[Path]) -> str:
    if len(files) == 1:
        return file_digest(files[0])
    combined = hashlib.sha256()
    for file in files:
        combined.update(f"{file.name} {file_digest(file)}\n".encode())
    return f"sha256:{combined.hexdigest()}"


def _digest_tokenizer(folder: Path) -> str:
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    return _digest_all(sorted(found - {folder / "config.json", folder / INDEX}))
