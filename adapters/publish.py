"""Publishes an adapter: name, copy, judge the copy, store it, then one catalog transaction.

Interrupted at any point, the store is as before or as after; at worst a file or an object stays
that no version names. Knows nothing of what runs adapters.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.actor import current_user
from adapters.base import BaseModel, read_base
from adapters.catalog import AdapterVersion, Catalog
from adapters.checkpoint import Checkpoint, inspect_checkpoint
from adapters.errors import CheckpointInvalid, Problem
from adapters.files import PROVENANCE, SERVED, read_object
from adapters.names import STABLE, check_alias, check_publishable_name
from adapters.store import Staged, Store


def publish(
    folder: Path | str,
    *,
    name: str,
    store: Path,
    base: Path,
    aliases: Sequence[str] = (STABLE,),
    base_name: str | None = None,
    actor: str | None = None,
    catalog_url: str | None = None,
    max_rank: int | None = None,
    allow_base_mismatch: bool = False,
    schemes: frozenset[str] | None = None,
    if_new: bool = False,
) -> AdapterVersion:
    """Publish a PEFT folder as the next version of `name`, and point `aliases` at it.

    `base` is the folder of the model it was trained on; `base_name` (its folder's name unless
    given) is what the catalog says of it. `catalog_url`: a catalog other than the store's own.
    Raises an AdapterError.
    """
    check_publishable_name(name)
    for alias in aliases:
        check_alias(alias)
    model = read_base(base)
    objects = Store(store)
    with objects.stage(Path(folder)) as staged:
        checkpoint, provenance = judge(staged, model)
        digest = objects.commit(staged)
        # While the store is held: `gc` would take the object for an orphan until it has a version.
        with Catalog.open(objects.root, catalog_url) as catalog:
            return catalog.publish(
                name=name,
                digest=digest,
                checkpoint=checkpoint,
                base=base_name or model.name,
                aliases=aliases,
                provenance=provenance,
                actor=actor or current_user(),
            )


def judge(staged: Staged, base: BaseModel) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The facts and the provenance of a staged copy; raises CheckpointInvalid with all problems."""
    # A file that could not be taken is missing in the copy: its own problem says why.
    untaken = {name for name in SERVED if name not in staged.hashes}
    checkpoint, found = inspect_checkpoint(staged.path, base)
    problems = [*staged.problems, *(each for each in found if each.where not in untaken)]
    provenance = None
    if PROVENANCE in staged.hashes:
        try:
            provenance = read_object(staged.path, PROVENANCE)
        except ValueError:
            said, fix = "is not a JSON object", "write it again, or leave it out"
            problems.append(Problem("provenance_malformed", PROVENANCE, said, fix))
    if problems or checkpoint is None:
        raise CheckpointInvalid(problems)
    return checkpoint, provenance
