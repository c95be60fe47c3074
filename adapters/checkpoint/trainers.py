"""Which tool has written an adapter's folder: a guess, by the files that it leaves.

Only names are looked at, a little of the README, and the config's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters.checkpoint.mlx import is_mlx
from adapters.store.files import CONFIG, PROVENANCE, FileRefused, read_object

README_BYTES = 65_536
TOLD = (("axolotl", "Axolotl"), ("llama-factory", "LLaMA-Factory"), ("unsloth", "Unsloth"))
LEFT = {
    "llamaboard_config.yaml": "LLaMA-Factory",
    "trainer_log.jsonl": "LLaMA-Factory",
    "training_loss.png": "LLaMA-Factory",
    "args.json": "ms-swift",
    "debug.log": "Axolotl",
    "adapter_model.pt": "torchtune",
}


def guess_trainer(folder: Path) -> str:
    """The tool's name, "PEFT" if none is recognised, or "unknown"."""
    if is_mlx(folder):
        return "mlx-lm"
    config: dict[str, Any] = {}
    with suppress(FileRefused, ValueError, RecursionError):
        config = read_object(folder, CONFIG)
    if (folder / PROVENANCE).exists():
        return "lorry train"
    if _is_unsloth(config):
        return "Unsloth"
    readme = _read_readme(folder)
    for word, name in TOLD:
        if word in readme:
            return name
    for file, name in LEFT.items():
        if (folder / file).exists():
            return name
    if "- trl" in readme or "trl:" in readme:
        return "TRL"
    if any((folder / name).exists() for name in ("training_args.bin", "trainer_state.json")):
        return "transformers or TRL"
    return "PEFT" if config.get("peft_type") else "unknown"


def _is_unsloth(config: Mapping[str, Any]) -> bool:
    mapping = config.get("auto_mapping")
    base = str(config.get("base_model_name_or_path") or "")
    return (isinstance(mapping, dict) and "unsloth_fixed" in mapping) or base.startswith("unsloth/")


def _read_readme(folder: Path) -> str:
    path = folder / "README.md"
    try:
        if path.is_symlink() or not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(README_BYTES).decode(errors="replace").lower()
    except OSError:
        return ""
