"""Publishes a sum of adapters as a version of its own: its parts stacked, as a server does it.

It needs no base: the parts were judged against theirs, and the sum is judged by their shapes.
Interrupted at any point, it leaves the store as before or as after.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.catalog import AdapterVersion, Catalog
from adapters.catalog.history import current_user
from adapters.catalog.versions import CHAT_FORM
from adapters.checkpoint.peft_config import MAX_RANK
from adapters.checkpoint.stacking import Weighted, base_of, judge, stack
from adapters.errors import SumInvalid, quote, unwritable
from adapters.names import STABLE, check_alias, check_publishable_name, parse_reference
from adapters.store import Staged, Store
from adapters.store.files import TOKENIZER
from adapters.sums import GRAMMAR, AdapterSum, Part, add_up, parse_sum

SUM = "sum"  # the key of the provenance that tells the parts


def compose(
    name: str,
    text: str,
    *,
    store: Store,
    catalog: Catalog,
    aliases: Sequence[str] = (STABLE,),
    max_rank: int = MAX_RANK,
    actor: str | None = None,
) -> AdapterVersion:
    """Publish the sum that `text` means now as the next version of `name`.

    The same sum again is the same version. Raises an AdapterError: AliasIsSplit for a part that
    means several versions, SumInvalid for what is no sum of several.
    """
    check_publishable_name(name)
    for alias in aliases:
        check_alias(alias)
    found = resolve_sum(text, catalog)
    _check_bases(found)
    with store.scratch() as folder:
        for part in found.parts:
            store.verify(part.version.digest)
        parts = [
            Weighted(store.path(each.version.digest), float(each.weight)) for each in found.stacked
        ]
        try:
            modules = stack(parts, folder, found.base)
        except OSError as error:
            said, hint = f"the files of {quote(text)} can't be written", "nothing was published"
            raise unwritable(said, error, hint) from error
        with store.stage(folder) as staged:
            staged = _with_form(store, staged, found)
            base = base_of(modules, found.base, found.base_digest)
            checkpoint = judge(staged.path, base, max_rank)
            return catalog.publish(
                name=name,
                digest=store.commit(staged),
                checkpoint=checkpoint,
                base=found.base,
                base_digest=found.base_digest,
                aliases=aliases,
                provenance=_provenance(found),
                actor=actor or current_user(),
            )


def resolve_sum(text: str, catalog: Catalog) -> AdapterSum:
    """The sum that `text` means now; raises as `compose` does."""
    terms = [(parse_reference(term.reference), term.weight) for term in parse_sum(text)]
    found = add_up(Part(catalog.resolve_only(each), weight) for each, weight in terms)
    if isinstance(found, AdapterSum):
        return found
    said = f"is {found.label} itself" if found is not None else "comes to nothing: it is the base"
    raise SumInvalid(f"{quote(text)} {said}", GRAMMAR)


def _check_bases(found: AdapterSum) -> None:
    first, *others = (part.version for part in found.parts)
    for other in others:
        if other.base_digest != first.base_digest:
            said = f"the parts {first.label} and {other.label} are of two bases"
            raise SumInvalid(
                f"{said}, {first.base} and {other.base}", "add up adapters of one base"
            )


def _with_form(store: Store, staged: Staged, found: AdapterSum) -> Staged:
    if found.chat_form is None:
        return staged
    form = store.path(found.parts[0].version.digest) / TOKENIZER
    return store.rewrite(staged, TOKENIZER, map(Path.read_bytes, [form]))


def _provenance(found: AdapterSum) -> dict[str, Any]:
    parts = [part.as_json() for part in found.parts]
    told: dict[str, Any] = {SUM: {"label": found.label, "digest": found.digest, "parts": parts}}
    return told if found.chat_form is None else told | {CHAT_FORM: found.chat_form}
