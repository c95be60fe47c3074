import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.catalog import Catalog
from adapters.cli import app
from adapters.names import parse_reference
from adapters.store import Store


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture
def published(first_store, store_with_orders) -> dict:
    return first_store[1].as_json()


def test_publish_tells_the_version_to_people_and_to_scripts(
    call, kit, base_folder, tmp_path
) -> None:
    folder = kit.build().write(tmp_path / "a")
    first = call("publish", folder, "--name", "orders", "--base", base_folder, "--json")
    assert first.exit_code == 0
    facts = json.loads(first.stdout)
    assert facts["label"] == "orders@1"
    assert facts["aliases"] == ["stable"]
    words = ("--name", "orders", "--base", base_folder, "--alias", "canary", "--alias", "beta")
    again = call("publish", kit.build(seed=2).write(tmp_path / "b"), *words)
    assert again.exit_code == 0
    assert again.stdout.startswith("orders@2 sha256:")
    assert again.stdout.endswith("(beta, canary)\n")


def test_list_shows_every_version(call, published) -> None:
    assert json.loads(call("list", "--json").stdout) == [published]
    table = call("list").stdout
    assert "orders@1" in table
    assert "stable" in table
    assert "tiny-base" in table


def test_show_tells_what_a_reference_means(call, published, tmp_path) -> None:
    facts = json.loads(call("show", "orders@stable", "--json").stdout)
    assert facts == published | {"path": str(Store(tmp_path / "store").path(published["digest"]))}
    assert published["digest"] in call("show", "orders").stdout


def test_verify_prints_a_line_for_each_object_and_fails_on_damage(
    call, published, tmp_path
) -> None:
    good = call("verify")
    assert good.exit_code == 0
    assert good.stdout == f"ok      {published['digest']} orders@1\n"
    path = Store(tmp_path / "store").path(published["digest"]) / "adapter_config.json"
    path.chmod(0o644)
    path.write_text("{}")
    bad = call("verify")
    assert bad.exit_code == 1
    assert bad.stdout.startswith(f"damaged {published['digest']} orders@1 ")
    assert json.loads(call("verify", "--json").stdout)[0]["status"] == "damaged"


def test_a_store_can_be_named_on_the_command_line(call, kit, base_folder, tmp_path) -> None:
    kit.build().write(tmp_path / "a")
    words = ("--name", "x", "--base", base_folder, "--store", tmp_path / "other")
    assert call("publish", tmp_path / "a", *words).exit_code == 0
    with Catalog.open(tmp_path / "other", create=False) as catalog:
        assert catalog.resolve(parse_reference("x")).version == 1


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["show", "orders@@"], 2, "bad_reference"),
        (["show", "x" * 10_000], 2, "bad_reference"),
        (["show", "nobody"], 2, "adapter_not_found"),
        (["list", "--store", "nowhere"], 2, "store_unreadable"),
        (["show", "a", "--store", "nowhere"], 2, "store_unreadable"),
        (["verify", "--store", "nowhere"], 2, "store_unreadable"),
        (["publish", "a", "--name", "text", "--base", "."], 2, "bad_name"),
        (["publish", "a", "--name", "ok", "--base", "nowhere"], 2, "base_unreadable"),
        (["list", "--store", "broken"], 1, "catalog_unreadable"),
    ],
)
def test_a_mistake_is_one_clear_line_and_its_exit_code(
    call, published, tmp_path, words, status, code
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "catalog.db").write_text("nonsense" * 100)
    result = call(*words)
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"({code})\n")
    assert result.stderr.count("\n") == 1


def test_all_problems_of_a_refused_adapter_are_printed(call, kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.config |= {"use_dora": True, "bias": "all"}
    folder = draft.write(tmp_path / "a")
    result = call("publish", folder, "--name", "orders", "--base", base_folder)
    assert result.exit_code == 2
    first, *problems = result.stderr.splitlines()
    assert (
        first
        == "error: the adapter has 2 problems; mend it and publish it again (checkpoint_invalid)"
    )
    assert [line.partition(":")[0].strip() for line in problems] == ["bias", "use_dora"]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, adapters.cli\n"
        "heavy = {'numpy', 'sqlalchemy', 'safetensors', 'torch', 'vllm', 'pydantic'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout == b"[]\n"
