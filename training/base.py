"""The files of the frozen base model and the digests that identify it.

Knows nothing about torch; asks the hub only for a base that is not a folder.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from training.errors import BaseInvalid

HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZER_FILES: Final = ("*.json", "*.jinja", "*.model")
PLACES: Final = ("folder", "where")
MODEL_FILES: Final = (*TOKENIZER_FILES, "*.safetensors")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model's folder, name and digests; `where` is its id on the hub, else the folder."""

    folder: Path
    where: str
    name: str
    config_digest: str
    weights_digest: str

    def facts(self) -> dict[str, str]:
        """The fields that travel with an adapter: all but its place."""
        return {key: value for key, value in asdict(self).items() if key not in PLACES}


def find_base(where: str, name: str) -> Base:
    """Find a base by folder or hub id and hash it; raises BaseInvalid."""
    folder = Path(where) if Path(where).is_dir() else _fetch(where)
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not config.is_file() or not weights:
        missing = "*.safetensors" if config.is_file() else "config.json"
        raise BaseInvalid(f"{folder}: has no {missing}", "give the folder of a saved model")
    found = where if folder != Path(where) else str(folder.resolve())
    return Base(folder, found, name, file_digest(config), _digest_all(weights))


def find_tokenizer(where: str) -> Path:
    """Find the folder of a base's tokenizer, or fetch it without the weights."""
    return Path(where) if Path(where).is_dir() else _fetch(where, TOKENIZER_FILES)


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


def _fetch(where: str, patterns: tuple[str, ...] = MODEL_FILES) -> Path:
    if not HUB_ID.fullmatch(where) or where.startswith("."):
        raise BaseInvalid(f"{where}: no such folder", "give a model folder or owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(where, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise BaseInvalid(
            f"{where}: no such folder, and the model hub did not give it",
            "check the name and the network, or give a model folder",
        ) from error
