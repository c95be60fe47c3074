"""Adapters from addresses: memory://, a real HTTP server, and one that speaks the hub's API."""

import errno
import json
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest
from publishing import publish
from refusals import not_refused

from adapters import addresses, sources
from adapters.addresses import redact
from adapters.catalog import Catalog
from adapters.errors import (
    CheckpointInvalid,
    SourceNotFound,
    SourceUnreachable,
    SourceUnsupported,
    StoreBusy,
    StoreUnwritable,
)
from adapters.sources import fetched
from adapters.store import Store
from adapters.store import store as store_module
from adapters.upkeep import collect

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def send(base_folder, tmp_path):
    def send(source: str, **options):
        return publish(source, name="a", store=tmp_path / "store", base=base_folder, **options)

    return send


@pytest.fixture
def memory(kit) -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    folder = "/bucket/adapter"
    draft = kit.build()
    files.pipe(f"{folder}/adapter_config.json", json.dumps(draft.config).encode())
    files.pipe(f"{folder}/{WEIGHTS}", kit.encode(draft.tensors))
    files.pipe(f"{folder}/optimizer.pt", b"x" * 1000)
    yield files
    files.rm("/bucket", recursive=True)


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "store" / "tmp").iterdir())


def test_an_address_is_published_and_recorded(send, memory, kit, tmp_path) -> None:
    version = send("memory://bucket/adapter")
    assert version.provenance == {"source": {"url": "memory://bucket/adapter"}}
    assert send(str(kit.build().write(tmp_path / "a"))).digest == version.digest
    assert leftovers(tmp_path) == []


def test_provenance_that_came_with_it_stays(send, memory) -> None:
    memory.pipe("/bucket/adapter/lorry.json", b'{"recipe": {"r": 4}}')
    assert send("memory://bucket/adapter/").provenance == {
        "recipe": {"r": 4},
        "source": {"url": "memory://bucket/adapter/"},
    }


def test_the_form_it_was_trained_in_is_fetched_too(send, memory) -> None:
    memory.pipe("/bucket/adapter/chat_template.jinja", b"{{ messages }}")
    provenance = send("memory://bucket/adapter").provenance
    assert "template_sha256" in provenance["chat_form"]
    memory.pipe("/bucket/adapter/tokenizer_config.json", bytes(17 << 20))
    with pytest.raises(CheckpointInvalid, match="file_too_large"):
        send("memory://bucket/adapter")


def test_an_adapter_of_mlx_is_fetched_too(send, memory, kit, tmp_path) -> None:
    folder = kit.as_mlx(kit.build(), tmp_path / "mlx")
    plain = send(str(folder))
    for path in folder.iterdir():
        memory.pipe(f"/bucket/mlx/{path.name}", path.read_bytes())
    assert send("memory://bucket/mlx").digest == plain.digest


def test_a_file_address_is_the_folder_itself(send, kit, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a folder")
    version = send(f"file://{folder}".replace(" ", "%20"))
    assert version.label == "a@1"
    assert version.provenance is None


def test_an_address_without_an_adapter_is_not_found(send, memory, tmp_path) -> None:
    with pytest.raises(SourceNotFound, match="memory://bucket/nothing"):
        send("memory://bucket/nothing")
    assert leftovers(tmp_path) == []


def test_one_file_missing_is_a_refusal_like_any_other(send, memory) -> None:
    memory.rm(f"/bucket/adapter/{WEIGHTS}")
    with pytest.raises(CheckpointInvalid, match="file_missing"):
        send("memory://bucket/adapter")


def test_a_pickle_is_refused_and_not_fetched(send, memory, monkeypatch) -> None:
    memory.mv(f"/bucket/adapter/{WEIGHTS}", "/bucket/adapter/adapter_model.bin")
    opened = []
    open_ = type(memory).open

    def spy(self, path, *args, **options):
        opened.append(path)
        return open_(self, path, *args, **options)

    monkeypatch.setattr(type(memory), "open", spy)
    with pytest.raises(CheckpointInvalid, match="file_pickle"):
        send("memory://bucket/adapter")
    assert not [path for path in opened if path.endswith(".bin")]


def test_a_file_is_fetched_only_up_to_its_limit(send, memory, tmp_path) -> None:
    memory.pipe(f"/bucket/adapter/{WEIGHTS}", bytes(8 << 20))
    with pytest.raises(CheckpointInvalid, match="file_too_large"):
        send("memory://bucket/adapter")
    memory.pipe("/bucket/adapter/adapter_config.json", bytes(2 << 20))
    with pytest.raises(CheckpointInvalid, match=r"adapter_config\.json.*file_too_large"):
        send("memory://bucket/adapter")
    assert leftovers(tmp_path) == []


def test_fetched_files_are_always_deleted(memory, tmp_path) -> None:
    with fetched("memory://bucket/adapter", tmp_path / "store/tmp", 1 << 20) as found:
        names = sorted(path.name for path in found.folder.iterdir())
    assert names == ["adapter_config.json", WEIGHTS]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("s3://b/a", "s3fs"),
        ("gs://b/a", "gcsfs"),
        ("az://b/a", "adlfs"),
        ("https://b/a", "aiohttp"),
    ],
)
def test_the_package_to_install_is_named(send, monkeypatch, source, package) -> None:
    monkeypatch.setattr(addresses.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceUnsupported, match=rf"pip install {package}$"):
        send(source)


UNSUPPORTED = [
    "nonsense://x/y",
    "simplecache::memory://b/a",
    "memory://a::zip://b",
    "hf://a",
    "://x",
    "file://tmp/x",
    "file:///tmp/%00",
    "a\0b",
    "h tp://x",
]


def test_an_unsupported_address_is_refused(send) -> None:
    assert not_refused(send, SourceUnsupported, UNSUPPORTED) == []


def test_a_scheme_may_be_written_in_capitals(send, memory) -> None:
    assert send("MEMORY://bucket/adapter").label == "a@1"


def test_a_full_disk_is_a_store_error_and_not_a_source_error(send, memory, monkeypatch) -> None:
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "copy_bounded", full)
    with pytest.raises(StoreUnwritable, match="No space left"):
        send("memory://bucket/adapter")


def test_nothing_is_collected_while_an_adapter_is_fetched(
    send, memory, kit, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(store_module, "ALONE_SECONDS", 0.05)
    fetch, asked = sources._fetch, []

    def collect_meanwhile(*arguments):
        fetch(*arguments)
        asked.append(1)
        with Catalog.open(tmp_path / "store") as catalog, pytest.raises(StoreBusy):
            collect(Store(tmp_path / "store"), catalog, min_age=timedelta(0))

    monkeypatch.setattr(sources, "_fetch", collect_meanwhile)
    assert send("memory://bucket/adapter").label == "a@1"
    assert asked == [1]


def test_only_allowed_schemes_are_read(send, memory, kit, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    for source in (
        "memory://bucket/adapter",
        "MEMORY://bucket/adapter",
        str(folder),
        f"file://{folder}",
    ):
        with pytest.raises(SourceUnsupported, match="allowed: hf, s3"):
            send(source, schemes=frozenset({"s3", "hf"}))
    assert send("memory://bucket/adapter", schemes=frozenset({"memory"})).version == 1


def test_secrets_in_an_address_are_not_shown() -> None:
    for secret in (
        "https://u:p4ss@h/a",
        "https://tok@h/a",
        "https://h/a?sig=p4ss",
        "https://h/a#p4ss",
    ):
        assert redact(secret) == "https://h/a"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Private(Quiet):
    """Serves files to callers with the token, also after a redirect."""

    def do_GET(self) -> None:
        if "token=s3cret" not in self.path:
            self.send_error(403)
        elif self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/", 1))
            self.end_headers()
        else:
            super().do_GET()

    do_HEAD = do_GET


def test_a_folder_on_a_web_server_is_published(send, serve, kit, tmp_path) -> None:
    kit.build().write(tmp_path / "www" / "adapter")
    host = serve(Quiet, directory=str(tmp_path / "www"))
    for url in (f"http://{host}/adapter", f"http://{host}/adapter/"):
        assert send(url).provenance == {"source": {"url": f"http://{host}/adapter"}}
    with pytest.raises(SourceNotFound):
        send(f"http://{host}/nothing")
    (tmp_path / "www" / "adapter" / WEIGHTS).rename(tmp_path / "www/adapter/adapter_model.bin")
    with pytest.raises(CheckpointInvalid, match="file_pickle"):
        send(f"http://{host}/adapter")


def test_a_token_in_a_query_opens_each_file_and_is_recorded_nowhere(
    send, serve, kit, tmp_path
) -> None:
    kit.build().write(tmp_path / "www" / "adapter")
    host = serve(Private, directory=str(tmp_path / "www"))
    version = send(f"http://{host}/moved/adapter?token=s3cret")
    assert version.provenance == {"source": {"url": f"http://{host}/moved/adapter"}}
    with Catalog.open(tmp_path / "store") as catalog:
        assert "s3cret" not in str(catalog.list_events())
    with pytest.raises(SourceUnreachable, match="403") as refused:
        send(f"http://user:pw@{host}/adapter?token=wr0ng")
    for secret in ("pw", "wr0ng"):
        assert secret not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_server_that_is_not_there_is_unreachable(send, tmp_path) -> None:
    with pytest.raises(SourceUnreachable, match="check the address"):
        send("http://127.0.0.1:9/adapter")
    assert leftovers(tmp_path) == []


class Endless(BaseHTTPRequestHandler):
    """Sends an endless file."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            return


def test_an_endless_answer_ends_at_the_limit(send, serve) -> None:
    with pytest.raises(CheckpointInvalid, match="file_too_large"):
        send(f"http://{serve(Endless)}/adapter")
