"""Which version a run's adapter becomes, and which aliases follow it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from shop import BASE, BASE_NAME, KEPT

from adapters.catalog import Catalog
from adapters.errors import CheckpointInvalid, GateRefused
from adapters.publish import Rules, publish
from adapters.store import Store
from training.errors import InputError
from training.publish import choose_aliases, publish_run
from training.recipe import Recipe
from training.run import Trained

FIRST, SECOND = "orders-json", "orders-sql"


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(
        {"name": "tone", "base": "b", "base_name": BASE_NAME, "data": {"train": "t.jsonl"}}
    )


class Shelf:
    """A store, and runs that are published to it."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.said: list[str] = []

    def publish(self, run: str, *aliases: str) -> int:
        trained = Trained(KEPT / run, BASE, {}, reused=False)
        store = self.folder / "store"
        published = publish_run(self.recipe, trained, store, None, aliases, self.said.append)
        return int(published["version"])

    def alias(self, alias: str) -> list[int]:
        with Catalog.open(self.folder / "store", None) as catalog:
            found = {each.alias: each.targets for each in catalog.list_aliases("tone")}
        return [target.version for target in found.get(alias, ())]


@pytest.fixture
def shelf(tmp_path: Path, recipe: Recipe) -> Shelf:
    return Shelf(tmp_path, recipe)


def test_an_alias_never_moves_back_to_a_run_that_was_published_before(shelf: Shelf) -> None:
    assert [shelf.publish(run, "stable") for run in (FIRST, SECOND)] == [1, 2]
    assert shelf.publish(FIRST, "stable") == 1
    assert shelf.alias("stable") == [2]
    (said,) = shelf.said
    assert said.startswith("stable stays at tone@2, which is newer than tone@1; ")
    assert "lorry adapters alias tone stable 1" in said


def test_publishing_without_an_alias_moves_none(shelf: Shelf) -> None:
    assert [shelf.publish(FIRST, "stable"), shelf.publish(SECOND)] == [1, 2]
    assert shelf.alias("stable") == [1]
    assert shelf.publish(SECOND, "canary") == 2
    assert (shelf.alias("canary"), shelf.alias("stable")) == ([2], [1])


def test_a_gate_keeps_the_alias_where_it_is_and_the_version_is_published(shelf: Shelf) -> None:
    shelf.publish(FIRST, "stable")
    with Catalog.open(shelf.folder / "store", None) as catalog:
        catalog.set_gate("tone", "exact-match", actor="me")
    with pytest.raises(GateRefused, match="tone@2 is published, and stable does not follow: "):
        shelf.publish(SECOND, "stable")
    assert shelf.alias("stable") == [1]
    assert shelf.publish(SECOND) == 2


def test_a_base_is_known_by_the_name_that_the_recipe_gave_it(shelf: Shelf, tmp_path: Path) -> None:
    """The adapter names the folder in which its base lay; elsewhere it has another one."""
    run, base = tmp_path / "run", tmp_path / BASE_NAME
    shutil.copytree(KEPT / FIRST, run)
    shutil.copytree(BASE, base)
    config = json.loads((run / "adapter_config.json").read_text())
    place = {"base_model_name_or_path": "/elsewhere/some-folder"}
    (run / "adapter_config.json").write_text(json.dumps(config | place))
    store, rules = Store(tmp_path / "other"), Rules(base)
    with Catalog.open(store.root, None) as catalog:
        (run / "lorry.json").write_text(json.dumps({"base": {"name": "another"}}))
        with pytest.raises(CheckpointInvalid, match="base_mismatch"):
            publish(run, "tone", store=store, catalog=catalog, rules=rules)
        (run / "lorry.json").write_text(json.dumps({"base": {"name": BASE_NAME}}))
        assert publish(run, "tone", store=store, catalog=catalog, rules=rules).version == 1


@pytest.mark.parametrize(
    ("alias", "no_alias", "chosen"),
    [(None, False, ("stable",)), (["canary"], False, ("canary",)), (None, True, ())],
)
def test_stable_follows_unless_told_otherwise(
    alias: Sequence[str] | None, no_alias: bool, chosen: tuple[str, ...]
) -> None:
    assert choose_aliases(alias, no_alias) == chosen


def test_an_alias_and_none_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        choose_aliases(["canary"], no_alias=True)
