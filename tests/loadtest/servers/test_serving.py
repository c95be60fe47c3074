"""Kinds of servers, with stand-ins for the commands that start an engine.

Real processes: the stores and models that they prepare are the subject.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from loadtest.errors import ServerFailed
from loadtest.markers.manifest import load_manifest
from loadtest.markers.marked import make_marked
from loadtest.plan.scenario import Server
from loadtest.servers import command_lines as commands
from loadtest.servers import llama_cpp, processes, testbed
from loadtest.servers import serving as servers
from loadtest.servers.command_lines import Setup
from loadtest.servers.llama_cpp import LlamaCpp
from loadtest.servers.serving import serving

BASE = Path(__file__).parents[3] / "examples/shop/base"
STANDIN = """
import http.server, os, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
print({name: value for name, value in os.environ.items() if name.startswith(("LORRY_", "VLLM_"))})
sys.stdout.flush()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    out = tmp_path_factory.mktemp("marked") / "out"
    make_marked(BASE, out, 2)
    manifest = load_manifest(out)
    return {name: manifest.folder(name, 1) for name in manifest.names}


@pytest.fixture
def setup(tmp_path, adapters):
    return Setup(base=BASE, name="shop", work=tmp_path, options=Server(), adapters=adapters)


@pytest.fixture
def standins(monkeypatch):
    """Replaces the engines' commands; those that prepare stores and models are real."""

    def stand_in(*arguments: object) -> list[str]:
        port = next(each for each in arguments if isinstance(each, int))
        return [sys.executable, "-c", STANDIN, str(port)]

    for kind in ("lorry", "plain", "stock", "stock_base", "merged", "peft"):
        monkeypatch.setattr(commands, kind, stand_in)


@pytest.mark.parametrize("kind", ["lorry", "plain"])
def test_lorry_has_a_store_with_the_first_version_of_each_and_a_token(setup, standins, kind):
    with serving(kind, setup) as served:
        published = (setup.work / "publish.log").read_text()
        assert served.admin_token
        assert served.admin_token in served.launches[0].log.read_text()
        assert served.admin_token not in repr(served)
    assert [f"{name}@1" in published for name in setup.adapters] == [True, True]
    assert [processes.members(session) for session in served.sessions] == [[]]


def test_the_limited_side_is_called_with_a_key_of_its_store(setup, standins):
    with serving("limited", setup) as served:
        secret = served.headers["authorization"].removeprefix("Bearer ")
        assert secret.startswith("lk-")
        assert secret not in repr(served)
        with Catalog.open(setup.work / "store", create=False) as catalog:
            (key,) = catalog.keys.all()
    assert key.limits.budget is not None
    assert None not in (key.limits.requests_per_minute, key.limits.in_flight)


@pytest.mark.parametrize("kind", ["stock", "stock-tuned", "stock-base"])
def test_stock_kinds_lack_our_plugin_and_only_tuned_ones_have_our_settings(setup, standins, kind):
    with serving(kind, setup) as served:
        log = served.launches[0].log.read_text()
        assert served.admin_token is None
        assert served.urls == {}
    assert "'VLLM_PLUGINS': 'bitsandbytes'" in log
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in log) == (kind != "stock")


def test_each_merged_model_has_a_server_and_the_number_that_fits_is_known(
    setup, standins, monkeypatch
):
    monkeypatch.chdir(setup.work.parent)
    nearby = dataclasses.replace(setup, work=Path(setup.work.name))  # a relative folder works too
    with serving("merged", nearby) as served:
        assert list(served.urls) == list(setup.adapters)
        assert len(set(served.urls.values())) == 2
        assert served.fits is not None
        assert served.fits > 2
        assert (setup.work / "merged/lt-0001/model.safetensors").exists()
    assert [processes.members(session) for session in served.sessions] == [[], []]


def test_the_number_of_merged_models_is_limited_by_memory(setup, standins, monkeypatch):
    monkeypatch.setattr(servers, "available_bytes", lambda: 1 << 30)
    monkeypatch.setattr(commands, "merge", lambda *_: [sys.executable, "-c", ""])
    with serving("merged", setup) as served:
        assert list(served.urls) == ["lt-0000"]


def test_llama_cpp_gets_each_adapter_converted_once_and_calls_their_fields(
    setup, standins, monkeypatch, tmp_path
):
    ran: list[Path] = []

    def convert(llama: LlamaCpp, base: Path, adapter: Path, out: Path) -> list[str]:
        ran.append(adapter)
        return [sys.executable, "-c", f"open({str(out)!r}, 'w').close()"]

    def serve(llama: LlamaCpp, name: str, adapters: list[Path], port: int) -> list[str]:
        assert all(each.is_file() for each in adapters)
        return [sys.executable, "-c", STANDIN, str(port)]

    monkeypatch.setattr(llama_cpp, "convert", convert)
    monkeypatch.setattr(llama_cpp, "serve", serve)
    llama = LlamaCpp(folder=tmp_path, gguf=tmp_path / "base.gguf", slots=2, tokens=8)
    for _ in range(2):
        with serving("llamacpp", dataclasses.replace(setup, llama_cpp=llama)) as served:
            assert list(served.fields) == ["shop", *setup.adapters]
            models = testbed._models_of(served)
            assert models is not None
            assert (models.base, models.adapters) == ("shop", list(setup.adapters))
    assert ran == list(setup.adapters.values())  # the second run converts none


def test_a_scenario_without_adapters_has_nothing_to_merge(standins, tmp_path):
    setup = Setup(base=BASE, name="shop", work=tmp_path, options=Server())
    with pytest.raises(ServerFailed, match="no adapter"), serving("merged", setup):
        pass


def test_a_missing_base_is_reported_with_the_log(setup, tmp_path):
    broken = Setup(
        base=tmp_path / "none",
        name="shop",
        work=tmp_path,
        options=Server(),
        adapters=setup.adapters,
    )
    with (
        pytest.raises(ServerFailed, match=r"base_not_found.*publish\.log"),
        serving("lorry", broken),
    ):
        pass


def test_an_unwritable_work_folder_is_reported(setup, tmp_path):
    (tmp_path / "file").touch()
    elsewhere = dataclasses.replace(setup, work=tmp_path / "file" / "work")
    with pytest.raises(ServerFailed, match="can't write below"), serving("lorry", elsewhere):
        pass


def test_a_preparation_that_times_out_is_reported(setup, monkeypatch):
    monkeypatch.setattr(servers, "_PREPARE_SECONDS", 0.2)
    endless = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(commands, "publish", lambda *_: endless)
    with pytest.raises(ServerFailed, match="did not end in 0 s"), serving("lorry", setup):
        pass
