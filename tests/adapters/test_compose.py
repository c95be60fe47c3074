"""A sum as a version of its own: `lorry adapters compose`."""

import json

import numpy as np
import pytest
from publishing import publish
from typer.testing import CliRunner

from adapters.catalog import Catalog
from adapters.cli import app
from adapters.compose import compose
from adapters.errors import (
    AdapterNotFound,
    AliasIsSplit,
    BadName,
    ObjectDamaged,
    SumInvalid,
)
from adapters.store import Store
from adapters.upkeep import audit

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def house(kit, base_folder, tmp_path):
    """A store with orders@1, orders@2 and tone@1, and what composes in it."""
    root = tmp_path / "store"
    for seed, (name, rank) in enumerate((("orders", 4), ("orders", 8), ("tone", 8))):
        folder = kit.build(seed=seed, rank=rank).write(tmp_path / f"{name}{seed}")
        publish(folder, name=name, store=root, base=base_folder)
    with Catalog.open(root) as catalog:
        yield Composer(Store(root), catalog)


class Composer:
    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.store, self.catalog = store, catalog

    def __call__(self, name: str, text: str, **given):
        return compose(name, text, store=self.store, catalog=self.catalog, **given)


def test_a_sum_becomes_a_version_with_its_parts_as_provenance(house):
    made = house("both", "tone*0.5 + orders@1*0.7", actor="ann")
    assert (made.label, made.rank, made.base, made.aliases) == (
        "both@1",
        12,
        "tiny-base",
        ("stable",),
    )
    told = made.provenance["sum"]
    assert told["label"] == "orders@1*0.7+tone@1*0.5"
    assert [(part["label"], part["weight"]) for part in told["parts"]] == [
        ("orders@1", 0.7),
        ("tone@1", 0.5),
    ]
    parts = [house.catalog.list_versions(name)[0].digest for name in ("orders", "tone")]
    assert [part["digest"] for part in told["parts"]] == parts
    assert [each.status for each in audit(house.store, house.catalog)] == ["ok"] * 4
    assert house.catalog.list_events("both")[0].actor == "ann"
    assert made.base_digest == house.catalog.list_versions("tone")[0].base_digest
    # The same sum, written in another way, is the same version.
    assert house("both", "orders@1*0.7+tone@1*.50").label == "both@1"
    later = house("both", "orders@2*0.7+tone@1*.50", aliases=())
    assert (later.label, later.aliases) == ("both@2", ())
    # It is an adapter like any other: a part of a sum, too.
    assert house("more", "both@1*0.5").rank == 12


def test_what_makes_no_version_of_its_own_is_refused(house):
    refused = {
        "orders@1": "is orders@1 itself",
        "orders@1*0.5+orders@1*0.5": "is orders@1 itself",
        "orders@1*0": "comes to nothing",
        "orders@1*9": "is not from -4 to 4",
    }
    for text, said in refused.items():
        with pytest.raises(SumInvalid, match=said):
            house("both", text)
    with pytest.raises(AdapterNotFound, match="nobody"):
        house("both", "orders@1*0.5+nobody")
    with pytest.raises(BadName):
        house("a+b", "orders@1*0.5")
    with pytest.raises(SumInvalid, match="r is '12', the limit is 8"):
        house("both", "orders@1+tone", max_rank=8)
    house.catalog.split("orders", "stable", {1: 1, 2: 1}, actor="ann")
    with pytest.raises(AliasIsSplit):
        house("both", "orders*0.5")
    assert len(list(house.store.digests())) == 3


def test_weights_that_are_too_large_together_are_refused(kit, base_folder, tmp_path, house):
    loud = kit.build(seed=9)
    loud.config["lora_alpha"] = 4000
    loud.tensors[loud.b] = kit.f32(np.full(loud.tensors[loud.b].shape, 5.0))
    publish(loud.write(tmp_path / "loud"), name="loud", store=house.store.root, base=base_folder)
    assert house("both", "loud*0.5").rank == 4
    with pytest.raises(SumInvalid, match="can change the base's weights by"):
        house("both", "loud*4")


def test_a_damaged_part_or_one_of_another_base_is_refused(house, kit, base_folder, tmp_path):
    digest = house.catalog.list_versions("tone")[0].digest
    file = house.store.path(digest) / WEIGHTS
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ObjectDamaged):
        house("both", "orders@1+tone")
    other = house.catalog.publish(
        name="other",
        digest=house.catalog.list_versions("orders")[0].digest,
        checkpoint=Facts(),
        base="another",
        base_digest="sha256:another",
        actor="ann",
    )
    with pytest.raises(SumInvalid, match="two bases, tiny-base and another"):
        house("both", f"orders@1+{other.label}")


class Facts:
    rank, alpha, size_bytes = 4, 8.0, 1


def test_its_parts_chat_form_goes_with_it(house, kit, base_folder, tmp_path):
    for seed, name in enumerate(("one", "two")):
        draft = kit.build(seed=seed + 20)
        draft.extra["chat_template.jinja"] = (
            b"{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
        )
        publish(draft.write(tmp_path / name), name=name, store=house.store.root, base=base_folder)
    made = house("both", "one*0.5+two*0.5")
    assert made.chat_form == house.catalog.list_versions("one")[0].chat_form
    forms = [house.store.path(each.digest) / "tokenizer_config.json" for each in versions(house)]
    texts = [form.read_bytes() for form in forms if form.exists()]
    assert len(texts) == 3
    assert len(set(texts)) == 1
    with pytest.raises(SumInvalid, match="different chat templates"):
        house("both", "one*0.5+tone*0.5")


def versions(house):
    return house.catalog.list_versions()


def test_the_command_prints_the_version_and_names_what_is_wrong(house):
    def call(*words: str):
        return CliRunner().invoke(app, [*words, "--store", str(house.store.root)])

    made = call("compose", "both", "orders@1*0.7+tone@1*0.5", "--no-alias", "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert (facts["label"], facts["aliases"]) == ("both@1", [])
    shown = call("show", "both@1")
    assert "orders@1*0.7+tone@1*0.5" in shown.stdout
    wrong = call("compose", "both", "orders@1*7")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: the weight 7 of 'orders@1' is not from -4 to 4;")
    assert wrong.stderr.endswith("(sum_invalid)\n")
