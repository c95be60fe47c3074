"""Commands on a running server: the product's own app, over HTTP, with a stand-in engine."""

import json
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from key_life import check_life
from online_calls import Stranger, call
from running_server import RunningServer, running_server, serving
from standin_server import TOKEN
from typer.testing import Result

from adapters import client
from adapters.catalog import Catalog

Call = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("token_in_environment")


@pytest.fixture
def server(base_folder: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(base_folder, tmp_path / "served") as server:
        yield server


@pytest.fixture
def online(server: RunningServer) -> Call:
    return lambda *words: call(*words, "--url", server.url)


@pytest.fixture
def published(online: Call, adapter) -> None:
    assert online("publish", adapter(1), "--name", "orders").exit_code == 0


def test_the_form_it_was_trained_in_is_sent_too(online: Call, adapter, tmp_path) -> None:
    folder = adapter(1)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    said = online("publish", folder, "--name", "orders")
    assert said.exit_code == 0
    assert "note: chats with it use its own chat template" in said.stderr
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "nowhere")
    said = online("publish", folder, "--name", "orders")
    assert said.exit_code == 2
    assert "(file_not_regular)" in said.stderr


def test_an_adapter_of_mlx_is_sent_too(online: Call, kit, tmp_path) -> None:
    said = online("publish", kit.as_mlx(kit.build(), tmp_path / "mlx"), "--name", "orders")
    assert said.exit_code == 0, said.stderr
    assert "(converted_from_mlx)" in said.stderr


def test_keys_live_on_a_server_as_on_a_store(server: RunningServer, capsys, monkeypatch) -> None:
    from lorry import main

    def lorry_keys(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["keys", *arguments, "--url", server.url])
        assert ended.value.code == code
        return capsys.readouterr().out

    check_life(lorry_keys)
    secret = json.loads(lorry_keys("create", "--name", "root", "--scope", "admin", "--json"))["key"]
    monkeypatch.delenv("LORRY_ADMIN_TOKEN")
    monkeypatch.setenv("LORRY_API_KEY", secret)
    assert [each["status"] for each in json.loads(lorry_keys("list", "--json"))] == [
        "active",
        "revoked",
    ]
    lorry_keys("create", "--name", "team-a", code=2)
    lorry_keys("show", "nobody", code=2)
    lorry_keys("show", "a/../b", code=2)
    events = json.loads(lorry_keys("history", "--json"))
    assert events[-1]["name"] == "root"


# Each is run in this order on a store and on a server, and must print the same.
COMMANDS = [
    "publish 1 --name orders",
    "publish 2 --name orders --alias canary --alias beta --json",
    "publish 2 --name orders --no-alias",
    "publish 1 --name text",
    "publish 1 --name a/b",
    "publish 1 --name ok --alias 7",
    "publish nowhere --name ok",
    "publish pickled --name ok",
    "publish wrong --name ok",
    "publish s3x://bucket::x --name ok",
    "compose both orders@1*0.7+orders@2*0.25 --no-alias --json",
    "compose both orders*0.5+orders@canary",
    "compose both orders*9",
    "compose both orders*0.5+nobody",
    "compose both orders",
    "compose a/b orders*0.5",
    "compose ok orders*0.5 --alias 7",
    "list",
    "list --json",
    "alias orders stable 2",
    "alias orders stable 1 --json",
    "alias orders stable 9",
    "alias orders 7 1",
    "alias nobody stable 1",
    "alias ../x stable 1",
    "alias orders stable 2 --gate exact-match",
    "alias orders stable 2 --gate exact-match --force --json",
    "alias orders stable 1",
    "split orders stable 1=1 2=1 --gate exact-match",
    "gate orders exact-match --json",
    "gate nobody exact-match",
    "alias orders stable 2",
    "publish 3 --name orders",
    "gate orders --off",
    "unalias orders beta",
    "unalias orders beta",
    "split orders stable 1=90 2=10",
    "split orders stable 1=9000000 2=10",
    "split orders stable 1=0",
    "split orders stable 1=x",
    "split orders stable 1=1 7=1",
    "list",
    "show orders",
    "show orders --key ann",
    "show orders@2",
    "show orders@canary --json",
    "show orders@nightly",
    "show orders@sha256:ffffffffff",
    "show nobody",
    "show orders@@",
    "pin orders@2",
    "list",
    "remove orders@2",
    "unpin orders@2 --json",
    "pin orders",
    "pin orders@9",
    "weight orders 2.5",
    "weight orders 3 --json",
    "weight orders 0",
    "weight orders nan",
    "weight orders much",
    "weight nobody 2",
    "weight ../x 2",
    "list",
    "show orders@2",
    "rollback orders stable --to 2",
    "rollback orders stable",
    "rollback orders nightly",
    "alias orders canary 1",
    "remove orders@2 --json",
    "remove orders@2",
    "remove orders@1",
    "history orders --json",
    "history --limit 2 --json",
    "history",
    "history nobody --json",
]


def test_every_command_says_the_same_of_a_store_and_of_a_server(
    online: Call, adapter, kit, base_folder: Path, tmp_path: Path
) -> None:
    adapter(1), adapter(2)
    (tmp_path / "adapterpickled").mkdir()
    (tmp_path / "adapterpickled" / "adapter_model.bin").write_text("x")
    wrong = kit.build()
    wrong.config |= {"use_dora": True, "bias": "all"}
    wrong.write(tmp_path / "adapterwrong")
    for command in COMMANDS:
        words = command.split()
        rules = []
        if words[0] == "publish":
            words[1] = words[1] if "://" in words[1] else f"adapter{words[1]}"
            rules = ["--base", base_folder, "--max-rank", 16]
        there = online(*words)
        here = call(*words, *rules)
        assert (there.exit_code, comparable(there)) == (here.exit_code, comparable(here)), command


def comparable(result: Result) -> list[str]:
    """The output without times, users, paths and residency."""
    text = result.stdout + result.stderr
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?([.]\d+)?([+]00:00)?", "TIME", text)
    lines = [
        re.sub(r'"actor": ".*"', '"actor": WHO', line).rstrip(",") for line in text.splitlines()
    ]
    if lines and "who" in lines[0]:
        lines = [re.sub(r"TIME +\S+ +", "TIME WHO ", line) for line in lines[1:]]
    elsewhere = ("path", "residency", "leases", "last_used", '"path"', '"leases"', '"last_used"')
    text = re.sub(r'\n *"residency": \[[^]]*\]', "", "\n".join(lines))
    return [line for line in text.splitlines() if not line.strip().startswith(elsewhere)]


def test_what_is_published_online_is_what_lies_in_the_servers_store(
    online: Call, server: RunningServer, adapter
) -> None:
    facts = json.loads(online("publish", adapter(1), "--name", "orders", "--json").stdout)
    here = json.loads(call("show", "orders", "--json", "--store", server.store).stdout)
    path = Path(here.pop("path"))
    assert here.pop("evaluations") == []
    assert facts == here
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (path / name).read_bytes() == (adapter(1) / name).read_bytes()
    (event, _) = json.loads(online("history", "--json").stdout)
    assert event["actor"].startswith("admin:")


def test_only_the_adapters_own_files_are_sent(online: Call, server, adapter, tmp_path) -> None:
    folder = adapter(1)
    (folder / "lorry.json").write_text('{"evaluation": {"loss": 1.5}}')
    (folder / "secret.txt").write_text("x" * 2_000_000)  # more than the server's limit
    shown = online("publish", folder.as_uri(), "--name", "orders", "--json")
    assert json.loads(shown.stdout)["provenance"] == {"evaluation": {"loss": 1.5}}


def test_load_and_unload_are_for_servers(online: Call, server: RunningServer, published) -> None:
    assert online("load", "orders").stdout == "loaded orders@1\n"
    (name,) = server.engine.loaded.values()
    assert name.startswith("orders@1#")
    shown = json.loads(online("show", "orders", "--json").stdout)
    assert (shown["residency"], shown["leases"]) == (["host", "device"], 0)
    assert "residency   host, device\n" in online("show", "orders").stdout
    assert json.loads(online("unload", "orders@1", "--json").stdout) == {"unloaded": ["orders@1"]}
    assert server.engine.loaded == {}
    assert online("load", "orders@9").stderr.endswith("(adapter_not_found)\n")
    for command in ("load", "unload"):
        refused = call(command, "orders")
        assert refused.exit_code == 2
        assert "--url" in refused.stderr


def test_a_refusal_keeps_the_servers_code(online: Call, published, tmp_path) -> None:
    source = online("publish", "s3://ann:secret@bucket/x", "--name", "x")
    assert source.exit_code == 2
    assert source.stderr.endswith("(source_not_allowed)\n")
    assert "secret" not in source.stderr
    online("pin", "orders")
    assert online("unload", "orders").stderr.endswith("(adapter_in_use)\n")
    assert online("history", "--limit", 5000).stderr.endswith("(invalid_request)\n")
    large = tmp_path / "large"
    large.mkdir()
    (large / "adapter_config.json").write_text("{}")
    (large / "adapter_model.safetensors").write_bytes(bytes(20_000_000))
    refused = online("publish", large, "--name", "x").stderr
    # The server may have hung up before its answer was read.
    assert "larger than 1000000 bytes (request_too_large)" in refused or (
        "`max_upload_bytes` bounds an upload (server_unreachable)" in refused
    )


def test_the_address_and_the_token_may_be_in_the_environment_or_a_file(
    server: RunningServer, published, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_URL", f"{server.url}/")
    assert json.loads(call("show", "orders", "--json").stdout)["label"] == "orders@1"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("LORRY_ADMIN_TOKEN", "not-the-token-of-this-server")
    assert call("list", "--admin-token-file", "token").exit_code == 0
    refused = call("list")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.endswith("(invalid_admin_token)\n")
    assert "LORRY_ADMIN_TOKEN" in refused.stderr
    assert "not-the-token" not in refused.stderr
    there = f"--url {server.url}"
    for words in ("--store x", "--catalog x", f"--store x {there}", f"{there} --store x"):
        assert "exclude each other" in call("list", *words.split()).stderr
    assert call("list", "--store", "x", "--url", "").stderr.endswith("(store_unreadable)\n")
    monkeypatch.setenv("LORRY_STORE", "x")
    assert call("list", "--admin-token-file", "token").exit_code == 0


def test_a_server_judges_by_its_own_rules(online: Call, adapter) -> None:
    for words in (["--base", "x"], ["--max-rank", 8], ["--allow-base-mismatch"]):
        refused = online("publish", adapter(1), "--name", "orders", *words)
        assert refused.exit_code == 2
        assert words[0] in refused.stderr
    assert "--base" in call("publish", adapter(1), "--name", "orders").stderr


def test_an_upload_is_read_from_disk_as_it_is_sent(adapter) -> None:
    folder = adapter(1)
    os.truncate(folder / "adapter_model.safetensors", 64 << 20)
    stranger = Stranger(200, b'{"aliases": [], "versions": []}')
    tracemalloc.start()
    try:
        with serving(stranger) as url:
            call("publish", folder, "--name", "x", "--url", url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stranger.received > 64 << 20
    assert peak < 16 << 20


def test_a_folder_that_changes_while_it_is_sent_is_refused(adapter) -> None:
    folder = adapter(1)
    weights = folder / "adapter_model.safetensors"
    os.truncate(weights, 64 << 20)  # more than the sockets hold
    stranger = Stranger(200, b'{"aliases": [], "versions": []}')
    stranger.on_data = lambda: os.truncate(weights, 1 << 20)
    with serving(stranger) as url:
        refused = call("publish", folder, "--name", "x", "--url", url)
    assert refused.exit_code == 2
    assert refused.stderr.endswith("(file_changed)\n")


def test_the_store_of_this_machine_is_not_touched(online: Call, published, tmp_path) -> None:
    online("list")
    assert not (tmp_path / ".lorry").exists()
    with Catalog.open(tmp_path / "served" / "store", create=False) as catalog:
        assert [version.label for version in catalog.list_versions()] == ["orders@1"]


def test_list_shows_all_adapters_of_a_server_that_lists_by_pages(
    online: Call, server: RunningServer, enter, monkeypatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    with Catalog.open(server.store) as catalog:
        for number in range(5):
            enter(catalog, f"adapter{number}", number)
    listed = json.loads(online("list", "--json").stdout)
    assert [each["label"] for each in listed] == [f"adapter{number}@1" for number in range(5)]
    assert all(each["shares"] == {"stable": 1.0} for each in listed)


def test_a_list_without_an_end_is_an_error() -> None:
    page = {"object": "list", "data": [], "last_id": "a", "has_more": True}

    async def app(scope, receive, send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(page).encode()})

    with serving(app) as url:
        said = call("list", "--url", url)
    assert said.exit_code == 1
    assert "answer_unclear" in said.output
