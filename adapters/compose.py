"""Publishes a sum of adapters as a version of its own: its parts stacked, as a server does it.

It needs no base: the parts were judged against theirs, and the sum is judged by their shapes.
Interrupted at any point, it leaves the store as before or as after.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adapters.catalog import AdapterVersion, Catalog
from adapters.catalog.history import current_user
from adapters.catalog.versions import CHAT_FORM
from adapters.checkpoint.peft_config import MAX_RANK
from adapters.checkpoint.stacking import Weighted, base_of, judge, stack
from adapters.errors import SumInvalid, quote, unwritable
from adapters.names import STABLE, check_alias, check_publishable_name, parse_reference
from adapters.store import AnyStore, Staged
from adapters.store.files import TOKENIZER
from adapters.sums import GRAMMAR, AdapterSum, Part, add_up, parse_sum

SUM = "sum"  # the key of the provenance that tells the parts


def compose(
    name: str,
    text: str,
    *,
    store: AnyStore,
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
    with store.scratch() as folder, ExitStack() as held:
        digests = {part.version.digest for part in found.parts}
        folders = {each: held.enter_context(store.using(each)) for each in digests}
        for each in digests:
            store.verify(each)
        parts = [Weighted(folders[x.version.digest], float(x.weight)) for x in found.stacked]
        try:
            modules = stack(parts, folder, found.base)
        except OSError as error:
            said, hint = f"the files of {quote(text)} can't be written", "nothing was published"
            raise unwritable(said, error, hint) from error
        with store.stage(folder) as staged:
            staged = _with_form(store, staged, found, folders[found.parts[0].version.digest])
            base = base_of(modules, found.base, found.base_digest)
            checkpoint = judge(staged.path, base, max_rank)
            version = catalog.publish(
                name=name,
                digest=store.commit(staged),
                checkpoint=checkpoint,
                base=found.base,
                base_digest=found.base_digest,
                aliases=aliases,
                provenance=_provenance(found),
                actor=actor or current_user(),
            )
            store.settle(staged)  # may fail: composing again makes no other version
            return version


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


def _with_form(store: AnyStore, staged: Staged, found: AdapterSum, part: Path) -> Staged:
    """The chat form of a part's folder: that of all of them."""
    if found.chat_form is None:
        return staged
    return store.rewrite(staged, TOKENIZER, map(Path.read_bytes, [part / TOKENIZER]))


def _provenance(found: AdapterSum) -> dict[str, Any]:
    parts = [part.as_json() for part in found.parts]
    told: dict[str, Any] = {SUM: {"label": found.label, "digest": found.digest, "parts": parts}}
    return told if found.chat_form is None else told | {CHAT_FORM: found.chat_form}
