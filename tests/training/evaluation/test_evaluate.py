"""`lorry evaluate` on a store: a trained adapter and its base answer held-out orders for real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from publishing import publish
from shop import BASE, BASE_NAME, KEPT
from typer.testing import CliRunner, Result

from adapters.catalog import Catalog
from training.data.sets import read_set
from training.evaluation.cli import app
from training.shop.dataset import exchanges

Call = Callable[..., Result]


def write_orders(path: Path, split: str = "heldout", count: int = 8) -> Path:
    source = exchanges("orders-json", split)
    lines = []
    for prompt, answer in (next(source) for _ in range(count)):
        turns = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """orders@1 answers with JSON; orders@2, for the same name, with SQL."""
    store = tmp_path_factory.mktemp("evaluated") / "store"
    for folder, aliases in (("orders-json", ("stable",)), ("orders-sql", ())):
        publish(
            KEPT / folder,
            name="orders",
            store=store,
            base=BASE,
            base_name=BASE_NAME,
            aliases=aliases,
        )
    return store


@pytest.fixture
def call(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_STORE", str(store))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    return write_orders(tmp_path / "heldout.jsonl")


def test_a_version_is_judged_against_base_and_another_and_recorded(call, heldout, store) -> None:
    done = call(
        *("orders", "--against", "orders@2", "--data", heldout, "--metric", "json-equal"),
        *("--base", BASE),
    )
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("json-equal of 8 examples, data sha256:")
    assert [line.split()[0] for line in lines[2:5]] == ["orders@1", "base", "orders@2"]
    assert lines[-1] == "recorded with orders@1 and orders@2"
    assert "warning: 8 examples" in done.stderr
    with Catalog.open(store) as catalog:
        found = catalog.list_evaluations("orders")
    first, second = found["orders", 1][-1], found["orders", 2][-1]
    assert first.score.mean > 0.5
    assert first.base.score.mean == second.score.mean == 0
    assert [each.against for each in first.comparisons] == ["base", "orders@2"]
    assert [each.against for each in second.comparisons] == ["base", "orders@1"]
    assert second.comparisons[1].difference.mean == -first.comparisons[1].difference.mean
    assert first.comparisons[0].exceeds_noise
    assert first.data_digest == read_set([str(heldout)]).digest()
    assert (first.by, first.examples, first.max_tokens, first.cut) == ("offline", 8, 256, 0)
    assert first.median_tokens > 10


def test_json_holds_the_record_and_wrong_answers(call, heldout) -> None:
    done = call(
        *("orders@2", "--data", heldout, "--base", BASE, "--limit", 2, "--max-tokens", 60),
        *("--wrong", 1, "--json"),
    )
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    (judged,) = facts["versions"]
    assert (facts["metric"], facts["examples"]) == ("exact-match", 2)
    assert judged["evaluation"]["score"]["mean"] == 0
    (wrong,) = judged["wrong"]
    assert wrong["where"].endswith("heldout.jsonl: line 1")
    assert wrong["answer"].startswith("INSERT INTO")
    assert wrong["expected"].startswith('{"items"')


def test_the_set_it_was_trained_on_is_refused(call, tmp_path, store) -> None:
    data = write_orders(tmp_path / "train.jsonl", "train", 20)
    digest = read_set([str(data)]).digest()
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (KEPT / "orders-json").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "lorry.json").write_text(json.dumps({"data": {"train": digest}}))
    publish(folder, name="seen", store=store, base=BASE, base_name=BASE_NAME)
    for limit in ((), ("--limit", 5)):
        refused = call("seen", "--data", data, "--base", BASE, *limit)
        assert refused.exit_code == 2
        assert "seen@1 was trained on" in refused.stderr


def test_a_prompt_of_the_training_set_is_refused_if_it_is_given(call, tmp_path, heldout) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(heldout.read_text().splitlines()[3])
    words = ("orders", "--data", heldout, "--base", BASE, "--trained-on", train)
    refused = call(*words)
    assert refused.exit_code == 2
    assert "1 of 8 prompts are in the training set too" in refused.stderr
    assert "line 4" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody",), "there is no adapter 'nobody'"),
        (("orders", "--against", "orders@9"), "has no '9'"),
        (("orders", "--metric", "bleu"), "'bleu' is no metric"),
        (("orders",), "needs its base, shop-base, to answer; give it with --base"),
        (("orders", "--base", "nowhere"), "nowhere"),
        (("orders", "--url", "ftp://x"), "not the address of a server"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_code_2(call, heldout, monkeypatch, words, said) -> None:
    monkeypatch.setenv("LORRY_ADMIN_TOKEN", "a-token-of-the-tests")
    if "--url" in words:
        monkeypatch.delenv("LORRY_STORE")
    refused = call(*words, "--data", heldout)
    assert refused.exit_code == 2, refused.stdout
    assert said in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_version_with_a_chat_template_of_its_own_is_left_to_a_server(
    call: Call, heldout: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(KEPT / "orders-json", tmp_path / "own")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    store = tmp_path / "own-store"
    publish(folder, name="own", store=store, base=BASE, base_name=BASE_NAME)
    said = call("own", "--data", heldout, "--base", BASE, "--store", store)
    assert said.exit_code == 2
    assert "own@1 is asked in a chat form of its own" in said.stderr
    assert "--url" in said.stderr
