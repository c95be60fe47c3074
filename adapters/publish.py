"""Publishes an adapter: fetch it, copy it, judge the copy, store it, then one catalog transaction.

Interrupted at any point, it leaves the store as before or as after; at worst a file or an object
remains that no version names. Knows nothing of engines.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from adapters.catalog import AdapterVersion, Catalog
from adapters.catalog.changes import check_same_base
from adapters.catalog.history import REMOVED, current_user
from adapters.catalog.versions import CHAT_FORM
from adapters.chat_form.judge import JudgedForm, judge_form
from adapters.checkpoint import Checkpoint, inspect_checkpoint, largest_weights
from adapters.checkpoint.base import Base, is_called, read_base
from adapters.checkpoint.mlx import convert, is_mlx
from adapters.checkpoint.pairs import describe_changes, plain_names
from adapters.checkpoint.peft_config import MAX_RANK
from adapters.checkpoint.tensors import TensorsMalformed, read_tensors, rename_tensors
from adapters.errors import AdapterNotFound, CheckpointInvalid, Problem, RemovedBefore, quote
from adapters.names import (
    STABLE,
    DigestPrefix,
    Reference,
    check_alias,
    check_base_name,
    check_publishable_name,
)
from adapters.sources import fetched
from adapters.store import AnyStore, Staged, digest_of
from adapters.store.files import (
    CONFIG,
    PROVENANCE,
    SERVED,
    TOKENIZER,
    WEIGHTS,
    FileRefused,
    read_object,
)

MAX_NESTING = 32  # of lorry.json
WARNINGS = "publish_warnings"  # a key of the provenance that publishing writes, as CHAT_FORM is


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules by which an adapter is accepted, and the base that it is for."""

    base: Path  # the folder of the model that the adapters were trained on
    base_name: str | None = None  # its name in the catalog; the folder's name if None
    max_rank: int = MAX_RANK
    allow_base_mismatch: bool = False
    schemes: frozenset[str] | None = None  # of sources (adapters/sources.py); any if None


def publish(
    source: Path | str,
    name: str,
    *,
    store: AnyStore,
    catalog: Catalog,
    rules: Rules,
    aliases: Sequence[str] = (STABLE,),
    actor: str | None = None,
    if_new: bool = False,
) -> AdapterVersion:
    """Publish a PEFT adapter as the next version of `name`, and point `aliases` at it.

    `source` is a folder or an address (adapters/sources.py), `catalog` the one of the store, and
    `actor` the user of this process unless given. With `if_new`, bytes that the name has already
    are left as they are, aliases included, and bytes whose version was removed are refused.
    Raises an AdapterError.
    """
    check_publishable_name(name)
    for alias in aliases:
        check_alias(alias)
    check_base_name(rules.base_name)
    base = read_base(rules.base)
    max_bytes = largest_weights(base)
    with (
        store.in_use(),
        fetched(source, store.tmp, max_bytes, rules.schemes) as found,
        examined_copy(found.folder, base, store=store, rules=rules) as examined,
    ):
        checkpoint = examined.accepted()
        digest = digest_of(examined.staged.hashes)
        known = _find_known(catalog, name, digest) if if_new else None
        store.commit(examined.staged, is_known=known is not None)
        # While the store is held: until it has a version, `gc` takes the object for an orphan.
        if known is not None:
            if not rules.allow_base_mismatch:
                check_same_base(known.label, known.base_digest, base.digest)
            return known
        version = catalog.publish(
            name=name,
            digest=digest,
            checkpoint=checkpoint,
            base=rules.base_name or base.name,
            base_digest=base.digest,
            aliases=aliases,
            provenance=_complete(examined, found.origin),
            actor=actor or current_user(),
            any_base=rules.allow_base_mismatch,
        )
        store.settle(examined.staged)  # may fail: publishing again makes no other version
        return version


def list_notes(version: AdapterVersion) -> list[str]:
    """What its callers should know of a version, one sentence each."""
    form = version.chat_form
    if form is None:
        return []
    notes = []
    if "template_sha256" in form:
        notes.append("chats with it use its own chat template, not the base's")
    if "end_token" in form:
        notes.append(f"its answers end at its own end token, {quote(str(form['end_token']))}, too")
    return notes


def list_warnings(version: AdapterVersion) -> list[str]:
    """What publishing warned of, one sentence each; recorded in the version's provenance."""
    return [str(Problem(**each)) for each in (version.provenance or {}).get(WARNINGS, [])]


@dataclass(frozen=True, slots=True)
class Examined:
    """What publishing finds in an adapter's folder, and the copy as it would be stored.

    `checkpoint` is None where there are problems; `own` is its own chat form.
    """

    staged: Staged
    checkpoint: Checkpoint | None
    provenance: dict[str, Any] | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    own: JudgedForm

    def accepted(self) -> Checkpoint:
        """Raises CheckpointInvalid."""
        if self.problems or self.checkpoint is None:
            raise CheckpointInvalid(self.problems)
        return self.checkpoint


@contextmanager
def examined_copy(folder: Path, base: Base, *, store: AnyStore, rules: Rules) -> Iterator[Examined]:
    """Copy an adapter's folder aside, judge the copy, and change it to what is stored.

    Raises CheckpointInvalid for a folder of another form that can't be converted, or a StoreError.
    """
    max_bytes = largest_weights(base)
    with (
        _in_peft_form(folder, store, max_bytes) as (plain, converted),
        store.stage(plain, max_bytes) as staged,
    ):
        yield _examine(folder, staged, converted, base, store, rules)


@contextmanager
def _in_peft_form(
    folder: Path, store: AnyStore, max_bytes: int
) -> Iterator[tuple[Path, list[Problem]]]:
    """The folder, or a copy of it in PEFT's form, and what was converted."""
    if not is_mlx(folder):
        yield folder, []
        return
    with store.scratch() as copy:
        yield copy, [convert(folder, copy, max_bytes)]


def _examine(
    folder: Path,
    staged: Staged,
    converted: list[Problem],
    base: Base,
    store: AnyStore,
    rules: Rules,
) -> Examined:
    names = None if rules.allow_base_mismatch else base.names | {rules.base_name or base.name}
    staged, renamed = _restore_names(store, staged, base)
    provenance, problems = _read_provenance(staged)
    if names and _trained_on(staged, provenance, names):
        names = None
    # A refused file is missing in the copy too; its own problem says why.
    untaken = {name for name in SERVED if name not in staged.hashes}
    checkpoint, found = inspect_checkpoint(staged.path, base, max_rank=rules.max_rank, names=names)
    kept = (each for each in found if each.where not in untaken)
    own = judge_form(folder, rules.base)
    problems = [*staged.problems, *kept, *problems, *own.problems]
    doubts = checkpoint.warnings if checkpoint else ()
    warnings = (*converted, *renamed, *doubts, *own.warnings)
    if own.form and not problems:
        staged = store.rewrite(staged, TOKENIZER, [own.form.as_bytes()])
    return Examined(staged, checkpoint, provenance, tuple(problems), warnings, own)


def _restore_names(store: AnyStore, staged: Staged, base: Base) -> tuple[Staged, list[Problem]]:
    """The copy with the tensor names that PEFT writes, and a warning if some were others."""
    if WEIGHTS not in staged.hashes:
        return staged, []
    path = staged.path / WEIGHTS
    try:
        changed = plain_names(read_tensors(path), base)
    except TensorsMalformed:
        return staged, []  # judged next, with a reason
    if not changed:
        return staged, []
    fix = "check that it answers as it did where it was trained"
    warning = Problem("tensors_renamed", WEIGHTS, describe_changes(changed), fix)
    return store.rewrite(staged, WEIGHTS, rename_tensors(path, changed)), [warning]


def _complete(examined: Examined, origin: dict[str, str] | None) -> dict[str, Any] | None:
    """What came with the adapter, and what publishing knows of it."""
    brought = examined.provenance or {}
    told = {key: value for key, value in brought.items() if key not in (WARNINGS, CHAT_FORM)}
    if origin:
        told["source"] = origin
    if examined.warnings:
        told[WARNINGS] = [asdict(each) for each in examined.warnings]
    if examined.own.form:
        written = {"sha256": examined.staged.hashes[TOKENIZER]}
        told[CHAT_FORM] = examined.own.as_json() | written
    return told if told or examined.provenance is not None else None


def _trained_on(staged: Staged, provenance: dict[str, Any] | None, names: Collection[str]) -> bool:
    """Whether the config names the folder of a base that had one of these names in training.

    `lorry train` writes both. A config that names a model, and not a folder, is taken at its word.
    """
    base = (provenance or {}).get("base")
    told = base.get("name") if isinstance(base, dict) else None
    if not isinstance(told, str) or not is_called(told, names):
        return False
    try:
        place = read_object(staged.path, CONFIG).get("base_model_name_or_path")
    except (ValueError, RecursionError, FileRefused):
        return False  # judged with the config
    return isinstance(place, str) and PurePath(place).is_absolute()


def _read_provenance(staged: Staged) -> tuple[dict[str, Any] | None, list[Problem]]:
    if PROVENANCE not in staged.hashes:
        return None, []
    try:
        provenance = read_object(staged.path, PROVENANCE)
        _check_printable(provenance)
    except (ValueError, RecursionError):
        said = f"is not a JSON object that can be printed, at most {MAX_NESTING} deep"
        fix = "write it again, or leave it out"
        return None, [Problem("provenance_malformed", PROVENANCE, said, fix)]
    return provenance, []


def _check_printable(value: Any, depth: int = 0) -> None:
    """Raise ValueError for a value that no JSON answer can contain."""
    if depth > MAX_NESTING:
        raise ValueError("too deep")
    if isinstance(value, str):
        value.encode()  # not the lone half of a surrogate pair
    elif isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_printable(each, depth + 1)


def _find_known(catalog: Catalog, name: str, digest: str) -> AdapterVersion | None:
    try:
        return catalog.resolve(Reference(name, DigestPrefix(digest.removeprefix("sha256:"))))
    except AdapterNotFound:
        pass
    for event in catalog.list_events(name):
        if event.action == REMOVED and event.detail.get("digest") == digest:
            raise RemovedBefore(
                f"these bytes were {name}@{event.detail['version']}, which was removed",
                "publish them by `lorry adapters publish` if they are wanted again",
            )
    return None
