import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated import evaluation
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


def test_publish_prints_the_version_for_people_and_for_scripts(
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


def test_publish_warns_on_stderr_and_succeeds(call, kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.extra["chat_template.jinja"] = b"{{ raise_exception('no') }}"
    folder = draft.write(tmp_path / "a")
    said = call("publish", folder, "--name", "orders", "--base", base_folder)
    assert said.exit_code == 0
    assert said.stderr.startswith("note: chats with it use its own chat template")
    assert "\nwarning: chat_template.jinja: " in said.stderr
    assert said.stderr.endswith("(template_refuses)\n")
    assert said.stdout.startswith("orders@1 sha256:")
    facts = json.loads(call("show", "orders", "--json").stdout)
    assert facts["provenance"]["publish_warnings"][0]["code"] == "template_refuses"


def test_list_shows_every_version(call, published) -> None:
    shares = {"shares": {"stable": 1.0}}
    assert json.loads(call("list", "--json").stdout) == [published | shares]
    table = call("list").stdout
    assert "orders@1" in table
    assert "stable" in table
    assert "tiny-base" in table


def test_show_prints_the_meaning_of_a_reference(call, published, tmp_path) -> None:
    facts = json.loads(call("show", "orders@stable", "--json").stdout)
    path = Store(tmp_path / "store").path(published["digest"])
    assert facts == published | {"path": str(path), "evaluations": []}
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


@pytest.fixture
def two(call, published, kit, base_folder, tmp_path) -> None:
    """A store that also has orders@2, without an alias."""
    folder = kit.build(seed=2).write(tmp_path / "two")
    words = ("--name", "orders", "--base", base_folder, "--no-alias")
    assert call("publish", folder, *words).stdout.endswith(" (no alias)\n")


def test_a_rollout_from_canary_to_rollback(call, two) -> None:
    assert call("alias", "orders", "canary", 2).stdout == "orders@canary -> orders@2\n"
    said = call("split", "orders", "stable", "1=90", "2=10").stdout
    assert said == "orders@stable -> orders@1 90%, orders@2 10%\n"
    table = call("list").stdout
    assert "stable 90%" in table
    assert "canary, stable 10%" in table
    first, second = json.loads(call("list", "--json").stdout)
    assert first["shares"] == {"stable": 0.9}
    assert second["shares"] == {"canary": 1.0, "stable": 0.1}
    moved = json.loads(call("alias", "orders", "stable", 2, "--json").stdout)
    targets = [{"version": 2, "weight": 1}]
    assert moved == {"name": "orders", "alias": "stable", "targets": targets}
    assert call("rollback", "orders", "stable").stdout.endswith("orders@1 90%, orders@2 10%\n")
    back = call("rollback", "orders", "stable", "--to", 1, "--json").stdout
    assert json.loads(back)["targets"] == [{"version": 1, "weight": 1}]
    assert call("unalias", "orders", "canary").exit_code == 0
    assert "canary" not in call("list").stdout


def test_show_prints_a_callers_side_of_a_split(call, two) -> None:
    call("split", "orders", "stable", "1=50", "2=50")
    refused = call("show", "orders")
    assert refused.exit_code == 2
    assert "orders@1 (50), orders@2 (50); name one of these versions" in refused.stderr
    for words in (["pin", "orders"], ["remove", "orders@stable"]):
        assert call(*words).stderr.endswith("(alias_is_split)\n")
    shown = {call("show", "orders", "--key", key, "--json").stdout for key in "aaabbbcccddd"}
    assert {json.loads(facts)["label"] for facts in shown} == {"orders@1", "orders@2"}


def test_pins_are_shown_and_hold(call, two) -> None:
    assert call("pin", "orders@2").stdout == "orders@2 is pinned\n"
    assert "pinned" in call("list").stdout
    assert call("remove", "orders@2").stderr.endswith("(version_in_use)\n")
    assert not json.loads(call("unpin", "orders@2", "--json").stdout)["pinned"]
    assert call("unpin", "orders@2").stdout == "orders@2 is not pinned\n"


def test_files_of_a_removed_version_are_collected_later(call, two, tmp_path) -> None:
    removed = json.loads(call("remove", "orders@2", "--json").stdout)
    assert removed["removed"] == "orders@2"
    assert call("gc").stdout == "freed 0 bytes of 0; 1 too young\n"
    told = json.loads(call("gc", "--older-than", "0s", "--dry-run", "--json").stdout)
    assert told["orphans"] == [removed["digest"]]
    assert told["dry_run"]
    assert told["freed_bytes"] > 0
    said = call("gc", "--older-than", "0s").stdout
    assert said.startswith(f"{removed['digest']}\nfreed 3")
    assert not Store(tmp_path / "store").path(removed["digest"]).exists()
    wrong = call("gc", "--older-than", "soon")
    assert wrong.exit_code == 2
    assert "such as 1h" in wrong.stderr


def test_history_shows_who_did_what(call, two) -> None:
    call("split", "orders", "stable", "1=90", "2=10")
    lines = call("history", "orders").stdout.splitlines()
    assert len(lines) == 1 + 4
    assert "alias_moved" in lines[-1]
    assert "alias=stable from=1 to=[1=90 2=10]" in lines[-1]
    (last,) = json.loads(call("history", "--limit", 1, "--json").stdout)
    assert last.keys() == {"happened_at", "actor", "action", "name", "alias", "from", "to"}
    assert last["to"] == {"1": 90, "2": 10}


def test_aliases_are_given_or_not(call, kit, base_folder, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    words = ("--name", "orders", "--base", base_folder, "--alias", "x", "--no-alias")
    assert call("publish", folder, *words).exit_code == 2


def test_a_catalog_can_be_named_by_its_url(call, published, tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/store/catalog.db"
    facts = json.loads(call("show", "orders", "--json", "--catalog", url).stdout)
    assert facts["label"] == "orders@1"


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
        (["publish", "a", "--name", "ok", "--base", "nowhere"], 2, "base_not_found"),
        (["list", "--store", "broken"], 1, "catalog_unreadable"),
        (["alias", "orders", "stable", "7"], 2, "adapter_not_found"),
        (["alias", "orders", "7", "1"], 2, "bad_name"),
        (["unalias", "orders", "canary"], 2, "alias_not_found"),
        (["split", "orders", "stable", "1=x"], 2, "split_invalid"),
        (["split", "orders", "stable", "1=1", "1=2"], 2, "split_invalid"),
        (["split", "orders", "stable", "1=0"], 2, "split_invalid"),
        (["split", "orders", "stable", "1=1", "2=1"], 2, "adapter_not_found"),
        (["rollback", "orders", "stable"], 2, "nothing_to_roll_back"),
        (["rollback", "orders", "canary"], 2, "alias_not_found"),
        (["pin", "orders@9"], 2, "adapter_not_found"),
        (["remove", "orders@1"], 2, "version_in_use"),
        (["gc", "--store", "nowhere"], 2, "store_unreadable"),
        (["history", "nobody"], 2, "adapter_not_found"),
        (["alias", "\udcff", "stable", "1"], 2, "bad_name"),
        (["history", "\udcff"], 2, "bad_name"),
        (["unalias", "orders", "\udcff"], 2, "bad_name"),
        (["rollback", "orders", "\udcff"], 2, "bad_name"),
        (["publish", "a", "--name", "ok", "--base", ".", "--base-name", "\udcff"], 2, "bad_name"),
        (["watch", ".", "--base", "nowhere", "--once"], 2, "base_not_found"),
        (["watch", ".", "--base", "base", "--alias", "7", "--once"], 2, "bad_name"),
        (["list", "--catalog", "sqlite://"], 1, "catalog_unreadable"),
        (["list", "--catalog", "sqlite:///:memory:"], 1, "catalog_unreadable"),
        (["list", "--catalog", "mysql://ann:secret@host/x"], 1, "catalog_unreadable"),
    ],
)
def test_a_mistake_is_one_clear_line_and_its_exit_code(
    call, published, base_folder, tmp_path, words, status, code
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "catalog.db").write_text("nonsense" * 100)
    result = call(*words)
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"({code})\n")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["alias", "orders", "stable", "9" * 20],
        ["rollback", "orders", "stable", "--to", "9" * 20],
        ["history", "--limit", "9" * 20],
        ["gc", "--older-than", "999999d"],
    ],
)
def test_a_huge_number_is_the_callers_error(call, published, words) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("command", ["publish", "watch"])
def test_the_servers_rules_can_be_given(call, kit, base_folder, tmp_path, command) -> None:
    """Each option matters: the same command without it ends differently."""
    draft = kit.build(rank=4)
    draft.config["base_model_name_or_path"] = "org/other"
    folder = draft.write(tmp_path / "drop" / "orders")
    words = {
        "publish": ["publish", folder, "--name", "orders"],
        "watch": ["watch", folder.parent, "--once", "--interval", "0.05"],
    }[command]
    words += ["--base", base_folder]
    assert "base" in call(*words).stderr
    assert call(*words, "--base-name", "other", "--max-rank", "2").exit_code != 0
    assert call(*words, "--allow-base-mismatch").exit_code == 0
    with Catalog.open(tmp_path / "store", create=False) as catalog:
        catalog.drop_alias("orders", "stable", actor="test")
        catalog.remove("orders", 1, actor="test")
    # A watch does not bring a removed version back.
    named = call(*words, "--base-name", "other")
    assert named.exit_code == (1 if command == "watch" else 0)
    assert ("removed" in named.stderr) is (command == "watch")


def test_a_watch_reports_a_catalog_that_is_away_and_looks_again(
    call, kit, base_folder, tmp_path
) -> None:
    kit.build().write(tmp_path / "drop" / "orders")
    words = ["watch", tmp_path / "drop", "--base", base_folder, "--once", "--interval", "0.05"]
    result = call(*words, "--catalog", "postgresql://127.0.0.1:1/none")
    assert result.exit_code == 1
    assert "orders" in result.stderr
    assert "failed" in result.stderr
    assert call(*words).exit_code == 0


def test_all_problems_of_a_refused_adapter_are_printed(call, kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.config |= {"use_dora": True, "bias": "all"}
    folder = draft.write(tmp_path / "a")
    result = call("publish", folder, "--name", "orders", "--base", base_folder)
    assert result.exit_code == 2
    first, *problems = result.stderr.splitlines()
    assert (
        first
        == "error: the adapter has 2 problems; correct it and publish it again (checkpoint_invalid)"
    )
    assert [line.partition(":")[0].strip() for line in problems] == ["bias", "use_dora"]


def test_help_imports_nothing_heavy() -> None:
    """In a process of its own: this one has imported everything."""
    script = (
        "import sys, adapters.cli\n"
        "heavy = {'alembic', 'numpy', 'pydantic', 'rich.table', 'sqlalchemy', 'torch'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout == b"[]\n"


def test_evaluations_are_shown_and_the_gate_reads_them(call, two, tmp_path) -> None:
    refused = call("alias", "orders", "stable", 2, "--gate", "exact-match")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "error: orders@2 has no evaluation by exact-match; make one: lorry evaluate orders@2 --data"
        " FILE --metric exact-match (gate_refused)\n"
    )
    with Catalog.open(tmp_path / "store") as catalog:
        catalog.evaluate("orders", 1, evaluation(0.5), actor="ann")
        catalog.evaluate("orders", 2, evaluation(0.12, 0.1), actor="ann")
    shown = call("show", "orders@2").stdout.splitlines()[-1]
    assert "exact-match 0.1200 [0.0700, 0.1700] of 200; base 0.1000" in shown
    assert "(difference +0.0200, noise); data sha256:111111111111, offline" in shown
    facts = json.loads(call("show", "orders@2", "--json").stdout)
    assert [each["score"]["mean"] for each in facts["evaluations"]] == [0.12]
    assert call("alias", "orders", "stable", 2, "--gate", "exact-match").exit_code == 2
    forced = call("alias", "orders", "stable", 2, "--gate", "exact-match", "--force", "--json")
    assert json.loads(forced.stdout)["targets"] == [{"version": 2, "weight": 1}]
    assert "forced=True reason=orders@2 has 0.1200" in call("history", "orders").stdout


def test_a_gate_of_a_name_holds_for_every_alias_until_it_is_off(
    call, two, kit, base_folder, tmp_path
) -> None:
    assert call("gate", "orders", "exact-match").stdout == "orders has the gate exact-match\n"
    assert json.loads(call("show", "orders", "--json").stdout)["gate"] == "exact-match"
    assert call("alias", "orders", "nightly", 2).exit_code == 2
    folder = kit.build(seed=9).write(tmp_path / "next")
    words = ("publish", folder, "--name", "orders", "--base", base_folder)
    refused = call(*words)
    assert refused.exit_code == 2
    assert "publish it without an alias" in refused.stderr
    assert "(gate_refused)" in refused.stderr
    assert call(*words, "--no-alias").exit_code == 0
    assert call("alias", "orders", "nightly", 2, "--force").exit_code == 0
    assert call("gate", "orders").exit_code == 2
    assert call("gate", "orders", "x", "--off").exit_code == 2
    assert json.loads(call("gate", "orders", "--off", "--json").stdout)["gate"] is None
    assert call("alias", "orders", "nightly", 1).exit_code == 0
