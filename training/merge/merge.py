"""Writes the merged checkpoint: weights, the base's other files, and where it all came from.

It works in a hidden folder beside the result and renames it at the end, so that a killed or failed
merge leaves nothing that looks finished.
"""

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError

from adapters.chat_form.form import DEFAULT, TOOLS, own_form, read_base_form, read_form
from adapters.checkpoint.base import INDEX, weights_files
from adapters.store.files import CHAT_TEMPLATE, PROVENANCE, TOKENIZER
from training.errors import BaseInvalid, DiskFull, MergeFailed, OutputExists
from training.merge.source import Pair
from training.merge.weights import (
    Into,
    merge_file,
    merged_bytes,
    quantized_weights,
    read_deltas,
)

if TYPE_CHECKING:
    import torch

PACKAGES: Final = ("torch", "transformers", "safetensors", "bitsandbytes", "lorry")
# The base's card describes another model; weights are written anew.
LEFT_OUT: Final = ("README.md", PROVENANCE, INDEX)
OTHER_WEIGHTS: Final = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".ckpt"}
)
SPARE_BYTES: Final = 64 << 20

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """Which weights the adapter is added to, and the type of the sum."""

    into: Into
    dtype: "torch.dtype"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def merge(pair: Pair, out: Path, options: Options, report: Report) -> dict[str, Any]:
    """Write the checkpoint of base and adapter to `out`; returns its provenance.

    Raises OutputExists, DiskFull, MergeFailed or BaseInvalid; then `out` is as it was.
    """
    out, base = out.resolve(), pair.base.folder
    check_unused(out)
    config = _read_config(base)
    _check_space(out, merged_bytes(base, options.dtype))
    quantized = quantized_weights(base) if options.into == "nf4" else frozenset()
    deltas = read_deltas(pair.source.folder, pair.config)
    provenance = _describe(pair, options)
    with _unfinished(out) as folder:
        files = weights_files(base)
        for number, path in enumerate(files, 1):
            report(f"merging {path.name} ({number} of {len(files)})")
            merge_file(path, folder / path.name, deltas, quantized, options.dtype)
        _copy_others(base, folder)
        write_form(pair.source.folder, base, folder)
        _write_json(folder / "config.json", _with_dtype(config, options.dtype_name))
        _write_index(base, folder)
        _write_json(folder / PROVENANCE, provenance)
    return provenance


def _read_config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise BaseInvalid(
            f"{base}: is quantized already, its weights can't be added to",
            "give the folder of the unquantized base with --base",
        )
    return config


def check_unused(out: Path) -> None:
    """Raises OutputExists unless `out` is not there, or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputExists(f"{out}: is there already", "name a folder that is not, or an empty one")


def _check_space(out: Path, size: int) -> None:
    parent = next(each for each in out.parents if each.exists())
    free = shutil.disk_usage(parent).free
    if free < size + SPARE_BYTES:
        raise DiskFull(
            f"{out}: needs {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free",
            "free space, or name a folder on another disk",
        )


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A hidden folder that becomes `out` at the end, and is removed if the block fails."""
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except (OSError, SafetensorError) as error:
        raise _explain(out, error) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _explain(out: Path, error: Exception) -> DiskFull | MergeFailed:
    full = f"os error {errno.ENOSPC}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or full in str(error):
        return DiskFull(f"{out}: no space is left", "free space; nothing was kept")
    return MergeFailed(f"{out}: {error}", "nothing was kept")


def _copy_others(base: Path, folder: Path) -> None:
    """Copy what makes the base usable: tokenizer, templates, generation config, licence."""
    for path in sorted(base.iterdir()):
        wanted = path.suffix not in OTHER_WEIGHTS and path.name not in LEFT_OUT
        if wanted and path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, folder / path.name)


def write_form(adapter: Path, base: Path, folder: Path) -> None:
    """The chat form in which the adapter is asked, where it is not its base's."""
    form = own_form(read_form(adapter).form, read_base_form(base))
    if form is None:
        return
    path = folder / TOKENIZER
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if form.templates:
        config.pop("chat_template", None)
        (folder / CHAT_TEMPLATE).write_text(form.templates[DEFAULT], encoding="utf-8")
    if TOOLS in form.templates:  # where transformers keeps those beside the default one
        others = folder / "additional_chat_templates"
        others.mkdir(exist_ok=True)
        (others / f"{TOOLS}.jinja").write_text(form.templates[TOOLS], encoding="utf-8")
    _write_json(path, config | dict(form.tokens))


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with its type changed, also that of the models inside it."""
    changed = {
        key: _with_dtype(value, dtype)
        if key.endswith("_config") and isinstance(value, dict)
        else value
        for key, value in config.items()
    }
    named = [key for key in ("dtype", "torch_dtype") if key in config]
    return changed | dict.fromkeys(named, dtype)


def _write_index(base: Path, folder: Path) -> None:
    if not (base / INDEX).is_file():
        return
    index = json.loads((base / INDEX).read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    _write_json(folder / INDEX, index | {"metadata": {"total_size": size}})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _describe(pair: Pair, options: Options) -> dict[str, Any]:
    return {
        "merged": {
            "adapter": pair.source.label or pair.provenance.get("name") or pair.source.folder.name,
            "adapter_digest": pair.digest,
            "into": options.into,
            "dtype": options.dtype_name,
            "packages": {name: version(name) for name in PACKAGES},
        },
        "base": pair.base.facts(),
        "adapter": dict(pair.provenance),
    }
