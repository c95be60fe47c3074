"""Publishing a run's adapter: which version it is, and which aliases follow it.

What serves is a decision: `stable` unless the caller says otherwise, and never backwards.
"""

from collections.abc import Sequence
from typing import Any

from adapters.catalog import AdapterVersion, Catalog
from adapters.catalog.history import current_user
from adapters.errors import BadName, GateRefused
from adapters.names import STABLE, check_alias
from adapters.publish import Rules, list_warnings, publish
from adapters.store import Place, open_store
from training.errors import InputError
from training.progress import Report
from training.recipe import Recipe
from training.run import Trained


def choose_aliases(
    alias: Sequence[str] | None, no_alias: bool, publish: bool = True
) -> tuple[str, ...]:
    """What `--alias` and `--no-alias` mean together: `stable` if neither is given."""
    if alias and no_alias:
        raise InputError("--alias and --no-alias exclude each other", "give one of them")
    if (alias or no_alias) and not publish:
        raise InputError("--alias and --no-alias say how to publish", "give --publish, too")
    try:
        for name in alias or ():
            check_alias(name)
    except BadName as error:
        raise InputError(error.message, error.hint) from error
    return () if no_alias else tuple(alias or (STABLE,))


def publish_run(
    recipe: Recipe,
    trained: Trained,
    store: Place,
    catalog: str | None,
    aliases: Sequence[str],
    report: Report,
) -> dict[str, Any]:
    """Publish a run's adapter under the recipe's name; raises an AdapterError.

    An adapter that is published already keeps its version.
    """
    rules = Rules(trained.base_folder, recipe.base_name)
    with Catalog.open(store, catalog) as index:
        version = publish(
            trained.folder,
            recipe.name,
            store=open_store(store),
            catalog=index,
            rules=rules,
            aliases=(),
        )
        for warning in list_warnings(version):
            report(f"warning: {warning}")
        for alias in aliases:
            try:
                _point(index, version, alias, report)
            except GateRefused as refused:
                told = f"{version.label} is published, and {alias} does not follow"
                raise GateRefused(f"{told}: {refused.message}", refused.hint) from refused
    return version.as_json()


def _point(index: Catalog, version: AdapterVersion, alias: str, report: Report) -> None:
    targets = [each.targets for each in index.list_aliases(version.name) if each.alias == alias]
    held = max((target.version for each in targets for target in each), default=0)
    if held > version.version:
        report(
            f"{alias} stays at {version.name}@{held}, which is newer than {version.label}; "
            f"`lorry adapters alias {version.name} {alias} {version.version}` moves it back"
        )
    elif held < version.version:
        index.point(version.name, alias, version.version, actor=current_user())
