"""The checks before the slow start: as functions, then from the command line."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import sys

import pytest
from api_keys import make_key
from hub_server import COMMIT, Repo, running
from shop import BASE
from standin_server import standin_settings

from adapters.catalog import Catalog
from server import preflight
from server.errors import (
    PlatformUnsupported,
    PortInUse,
    QuantizationMissing,
    SettingsInvalid,
    StartupError,
)


@pytest.mark.parametrize(
    ("machine", "flags", "python", "words"),
    [
        ("x86_64", {"sse2"}, (3, 11), "AVX2"),
        ("riscv64", {"avx2"}, (3, 11), "riscv64"),
        ("x86_64", {"avx2"}, (3, 12), "3.12"),
    ],
)
def test_an_unsupported_platform_is_named(monkeypatch, machine, flags, python, words):
    monkeypatch.setattr(preflight, "is_cpu_build", lambda: True)
    preflight.check_platform("x86_64", lambda: {"avx2"}, (3, 11))
    with pytest.raises(PlatformUnsupported, match=words):
        preflight.check_platform(machine, lambda: flags, python)


def test_an_unknown_version_of_vllm_is_refused(monkeypatch):
    monkeypatch.setattr(preflight.metadata, "version", lambda name: "0.33.1")
    with pytest.raises(PlatformUnsupported, match=r"0\.33\.1"):
        preflight.check_platform("x86_64", lambda: {"avx2"}, (3, 11))


def test_a_gpu_build_needs_no_processor_features(monkeypatch):
    monkeypatch.setattr(preflight, "is_cpu_build", lambda: False)
    preflight.check_platform("x86_64", set, (3, 11))


def test_missing_bitsandbytes_is_an_error_only_when_it_is_wanted(monkeypatch):
    monkeypatch.setattr(preflight.util, "find_spec", lambda name: None)
    preflight.check_quantization("none")
    with pytest.raises(QuantizationMissing, match="bitsandbytes"):
        preflight.check_quantization("bitsandbytes")


def test_a_port_in_use_is_an_error_and_port_0_takes_a_free_one():
    with preflight.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            preflight.bind("127.0.0.1", port)


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
        most = preflight.take_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        assert most == min(before[1] - 256, 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_number_of_connections_leaves_descriptors_for_everything_else(monkeypatch):
    fits = {64: 32, 512: 256, 1024: 768, 65536: 8192}
    for limit, expected in fits.items():
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert preflight.take_descriptors() == expected
    assert preflight.take_descriptors(20_000) == 20_000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert preflight.take_descriptors(768) == 768
    with pytest.raises(SettingsInvalid, match=r"1024 file descriptors: .* set 768 at most"):
        preflight.take_descriptors(769)


def test_every_startup_error_has_its_own_exit_code():
    codes = [kind.exit_code for kind in StartupError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 8]


def run_serve(*arguments, env=None):
    command = [sys.executable, "-m", "lorry", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


@pytest.mark.parametrize(
    ("case", "code"),
    [("model", 3), ("base", 3), ("port", 4), ("store", 5), ("setting", 2), ("flag", 2)],
)
def test_a_failed_start_prints_one_line_and_has_its_own_exit_code(case, code, tmp_path):
    damaged = shutil.copytree(BASE, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"")
    a_file = tmp_path / "file"
    a_file.write_text("")
    store = ["--store", tmp_path / "store"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = {
            "model": [tmp_path / "nowhere"],
            "base": [damaged, "--port", 0, *store],
            "port": [BASE, "--port", taken.getsockname()[1], *store],
            "store": [BASE, "--port", 0, "--store", a_file],
            "setting": [BASE, "--max-loras", 0],
            "flag": [BASE, "--", "--api-key", "x"],
        }[case]
        text, json_ = (run_serve("--log-format", form, *arguments) for form in ("text", "json"))

    for done in (text, json_):
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr
    (line,) = text.stderr.strip().splitlines()
    assert line.startswith("error: ")
    (line_in_json,) = map(json.loads, json_.stderr.splitlines())
    assert (line_in_json["level"], line_in_json["exit_code"]) == ("error", code)
    assert line == f"error: {line_in_json['message']}"


@pytest.fixture
def hub():
    files = {path.name: path.read_bytes() for path in BASE.iterdir()}
    files["model.safetensors"] = b"damaged"
    bert = files | {"config.json": b'{"architectures": ["BertModel"]}'}
    with running({"acme/tiny": Repo(files), "acme/bert": Repo(bert)}) as hub:
        yield hub


def test_a_model_of_the_hub_that_is_not_there_ends_with_code_3_and_one_line(hub, tmp_path):
    environment = hub.environment(tmp_path / "hf")
    arguments = ("acme/nothing", "--port", 0, "--store", tmp_path / "store")
    text, json_ = (
        run_serve("--log-format", form, *arguments, env=environment) for form in ("text", "json")
    )
    assert (text.returncode, json_.returncode) == (3, 3)
    (line,) = text.stderr.splitlines()
    assert line.startswith("error: there is no folder 'acme/nothing' here")
    assert line.endswith("(base_not_found)")
    (line_in_json,) = map(json.loads, json_.stderr.splitlines())
    assert (line_in_json["exit_code"], f"error: {line_in_json['message']}") == (3, line)


def test_a_model_is_fetched_before_the_engine_starts_and_said_in_the_logs_form(hub, tmp_path):
    # Its weights are damaged, which is found right after.
    arguments = ("--log-format", "json", "acme/tiny", "--port", 0, "--store", tmp_path / "store")
    done = run_serve(*arguments, env=hub.environment(tmp_path / "hf"))
    assert done.returncode == 3
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [line["message"] for line in lines if line["level"] == "info"]
    assert said[0].startswith(f"fetching acme/tiny@{COMMIT} from the hub into")
    (error,) = (line["message"] for line in lines if line["level"] == "error")
    assert "model.safetensors" in error


def test_the_weights_of_a_model_that_can_not_be_served_are_not_fetched(hub, tmp_path):
    done = run_serve("acme/bert", "--port", 0, env=hub.environment(tmp_path / "hf"))
    assert (done.returncode, "BertModel is not a model" in done.stderr) == (3, True)
    assert "model.safetensors" not in hub.downloads()
    assert "config.json" in hub.downloads()


def test_a_port_in_use_is_found_before_a_model_is_fetched(hub, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_serve("acme/tiny", "--port", port, env=hub.environment(tmp_path / "hf"))
    assert done.returncode == 4
    assert hub.asked == []


def test_a_wrong_option_is_reported_in_the_logs_format():
    done = run_serve("--log-format", "json", "--no-such-option")
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["exit_code"]) == (2, 2)
    assert "--no-such-option" in line["message"]
    assert run_serve("--log-format", "text", "--no-such-option").stderr.startswith("Usage: ")


def test_a_cache_that_can_not_be_written_is_refused(tmp_path) -> None:
    preflight.check_cache(tmp_path / "new" / "cache", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsInvalid, match="--cache"):
        preflight.check_cache(tmp_path / "file" / "cache", {})
    preflight.check_cache(tmp_path / "file" / "cache", {"VLLM_CACHE_ROOT": "/elsewhere"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_that_others_reach_starts_only_with_keys_or_when_told_so(host, tmp_path):
    base = standin_settings(tmp_path)
    with Catalog.open(base.store) as catalog, preflight.bind(host, 0) as listener:
        for given in ({"require_keys": True}, {"insecure_no_auth": True}):
            preflight.check_exposure(standin_settings(tmp_path, **given), listener, catalog)
        with pytest.raises(SettingsInvalid, match="lorry keys create"):
            preflight.check_exposure(base, listener, catalog)
        make_key(catalog)
        catalog.keys.revoke("team-a", actor="test")  # it stays shut
        preflight.check_exposure(base, listener, catalog)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_on_this_machine_alone_no_key_is_needed(host, tmp_path):
    settings = standin_settings(tmp_path)
    with Catalog.open(settings.store) as catalog, preflight.bind(host, 0) as listener:
        preflight.check_exposure(settings, listener, catalog)


def test_an_open_server_that_others_reach_ends_with_code_2_and_one_line(tmp_path):
    done = run_serve(BASE, "--port", 0, "--host", "0.0.0.0", "--store", tmp_path / "store")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    for word in ("0.0.0.0", "lorry keys create", "--require-keys", "--insecure-no-auth"):
        assert word in line
