"""What is merged: the adapter that a reference or a folder names, and the base that it is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapters.catalog import Catalog
from adapters.checkpoint import read_checkpoint
from adapters.checkpoint.base import Base as Architecture
from adapters.checkpoint.base import is_called, read_base
from adapters.checkpoint.peft_config import MAX_RANK, PeftConfig, read_peft_config
from adapters.errors import CheckpointInvalid
from adapters.models import as_id, name_model, silent
from adapters.names import parse_reference
from adapters.store import Place, digest_of, open_store
from adapters.store.files import CONFIG, PROVENANCE, SERVED, FileRefused, read_object
from adapters.store.store import counted
from training.base import Base, file_digest, find_base
from training.errors import BaseInvalid, BaseMismatch
from training.progress import Report

FORCE = "give the base that it was trained on with --base, or --force to merge all the same"


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter's folder. `label` is NAME@VERSION of a published one, whose catalog knows its
    `base_name` and the digest of that base's architecture; they are None for a folder."""

    folder: Path
    label: str | None = None
    base_name: str | None = None
    base_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """An adapter and a base that it fits."""

    source: Source
    config: PeftConfig
    digest: str
    provenance: Mapping[str, Any]
    base: Base
    architecture: Architecture


def find_adapter(ref: str, store: Place, catalog: str | None) -> Source:
    """The adapter of a folder, or of a published version; raises an AdapterError.

    A folder is meant where it holds an adapter's config.
    """
    if (Path(ref) / CONFIG).is_file():
        return Source(Path(ref))
    reference = parse_reference(ref)
    with Catalog.open(store, catalog, create=False) as index:
        version = index.resolve_only(reference)
    objects = open_store(store, needed=lambda: (version.digest,))  # until this process ends
    with objects.using(version.digest) as folder:
        objects.verify(version.digest)
    return Source(folder, version.label, version.base, version.base_digest)


def pair(source: Source, base: str | None, report: Report = silent, *, force: bool) -> Pair:
    """The adapter with its base, which `base` names, else the adapter itself.

    Raises an AdapterError where the base is not found, BaseInvalid, BaseMismatch (never with
    `force`), or CheckpointInvalid where the adapter does not fit the base or has what a sum of
    weights can't express.
    """
    config, problems = read_peft_config(source.folder, MAX_RANK)
    if config is None:
        raise CheckpointInvalid(problems)
    claimed = source.base_name or config.base_name
    provenance = _read_provenance(source.folder)
    found = _find_base(base, claimed, _recorded(provenance), report, force=force)
    architecture = read_base(found.folder)
    if not force:
        _check_same(source, provenance, found, architecture)
    read_checkpoint(source.folder, architecture)
    names = counted(source.folder) if source.label else SERVED
    hashes = {name: file_digest(source.folder / name).split(":")[1] for name in names}
    return Pair(source, config, digest_of(hashes), provenance, found, architecture)


def trained_on(pair: Pair) -> Literal["full", "nf4"]:
    """The base's weights as training had them: in NF4, unless the provenance says otherwise."""
    recipe = pair.provenance.get("recipe")
    is_plain = isinstance(recipe, dict) and recipe.get("quantization") == "none"
    return "full" if is_plain else "nf4"


def unproven(pair: Pair) -> str | None:
    """A warning where nothing shows that this is the base that the adapter was trained on."""
    claimed = pair.config.base_name
    is_recorded = "weights_digest" in _recorded(pair.provenance)
    if is_recorded or is_called(claimed, pair.architecture.names):
        return None
    return f"the adapter names the base {claimed!r}; nothing shows that {pair.base.folder} is it"


def _find_base(
    given: str | None,
    claimed: str | None,
    recorded: Mapping[str, Any],
    report: Report,
    *,
    force: bool,
) -> Base:
    if given is not None:
        return find_base(given, name_model(given) if force or not claimed else claimed, report)
    if claimed and Path(claimed).is_dir():
        return find_base(claimed, name_model(claimed), report)
    repo, commit = recorded.get("repo"), recorded.get("commit")
    where = f"{repo}@{commit}" if repo and commit else claimed
    if where and as_id(where):
        return find_base(where, claimed or where, report)
    raise BaseInvalid(
        f"the adapter's base {claimed or '(it names none)'!r} is no folder here", "give --base"
    )


def _check_same(
    source: Source, provenance: Mapping[str, Any], base: Base, architecture: Architecture
) -> None:
    recorded = _recorded(provenance).get("weights_digest")
    if recorded and recorded != base.weights_digest:
        raise BaseMismatch(
            f"the weights of {base.folder} are {base.weights_digest[:19]}..., the adapter was"
            f" trained on {recorded[:19]}...",
            FORCE,
        )
    if source.base_digest and source.base_digest != architecture.digest:
        raise BaseMismatch(
            f"{source.label} was published for a base of another architecture than {base.folder}",
            FORCE,
        )


def _recorded(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    base = provenance.get("base")
    return base if isinstance(base, dict) else {}


def _read_provenance(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder, PROVENANCE)
    except (FileRefused, ValueError):
        return {}
