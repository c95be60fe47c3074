"""`lorry cluster`: what it refuses, and the Serve config that it prints."""

from __future__ import annotations

import pytest
import yaml
from server_process import ROOT
from typer.testing import CliRunner

from cluster.cli import app

BASE = str(ROOT / "examples" / "shop" / "base")
runner = CliRunner()


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No lorry.toml and no variables of the one who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("LORRY_URL", "LORRY_CATALOG", "LORRY_ADMIN_TOKEN", "LORRY_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_printed_config_is_one_that_serve_deploys(monkeypatch, tmp_path):
    from ray.serve.schema import ServeDeploySchema

    from cluster.app import build_gateway, build_servers

    monkeypatch.setenv("LORRY_ADMIN_TOKEN", "a-token-of-the-tests")
    monkeypatch.setenv("LORRY_CATALOG", "postgresql://lorry:hush@db/lorry")
    (tmp_path / "lorry.toml").write_text("max_loras = 4\nmax_body_bytes = 33554432\n")
    options = ["--replicas", "3", "--max-replicas", "8", "--replica-cpus", "4"]
    result = runner.invoke(
        app,
        ["up", BASE, "--print", *options, "--set", "store=adapters", "--", "--max-num-seqs", "64"],
    )
    assert result.exit_code == 0, result.output
    config = yaml.safe_load(result.stdout)
    ServeDeploySchema(**config)
    servers, gateway = config["applications"]
    assert servers["args"] == {
        "settings": {
            "model": BASE,
            "store": str(tmp_path / "adapters"),
            "max_loras": 4,
            "max_body_bytes": 1 << 25,
            "threads": 4,
        },
        "engine_flags": ["--max-num-seqs", "64"],
        "replicas": 3,
        "max_replicas": 8,
        "cpus": 4.0,
        "gpus": 0.0,
        "host": "",
    }
    assert gateway["args"] == {
        "host": "127.0.0.1",
        "port": 8000,
        "gateways": 1,
        "max_body_bytes": 1 << 25,
    }
    assert "hush" not in result.stdout, "secrets stay in the environment"
    build_servers(servers["args"])
    build_gateway(gateway["args"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up"], "no model given"),
        (["up", BASE, "--replicas", "0"], "replicas"),
        (["up", BASE, "--replicas", "4", "--max-replicas", "2"], "max_replicas is less"),
        (["up", BASE, "--set", "nonsense=1"], "--set 'nonsense=1'"),
        (["up", BASE, "--set", "max_loras"], "write NAME=VALUE"),
        (["up", BASE, "--set", "max_loras=x"], "max_loras"),
        (["up", BASE, "--set", "admin_source_schemes=["], "admin_source_schemes"),
        (["up", BASE, "--set", "port=1"], "port can't be set for a cluster"),
        (
            ["up", BASE, "--set", "store=s3://key:hush@a/b", "--set", "catalog=postgresql://h/d"],
            "leave them out",
        ),
        (["up", BASE, "--", "--enable-lora"], "--enable-lora"),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(arguments, words):
    result = runner.invoke(app, [*arguments, *([] if "--" in arguments else ["--print"])])
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_an_endpoint_for_others_needs_keys():
    result = runner.invoke(app, ["up", BASE, "--host", "0.0.0.0", "--port", "8765"])
    assert result.exit_code == 2, result.output
    assert "there are no API keys, and 0.0.0.0 can be reached from other machines" in result.output
    arguments = ["up", BASE, "--host", "0.0.0.0", "--address", "127.0.0.1:9"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "--set require_keys=true" in result.output


def test_what_is_wrong_with_a_base_is_said_before_ray_starts(tmp_path):
    result = runner.invoke(app, ["up", str(tmp_path / "nothing")])
    assert result.exit_code == 3, result.output


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://[::1"])
def test_status_says_that_no_cluster_answers(url):
    result = runner.invoke(app, ["status", "--url", url])
    assert result.exit_code == 1
    assert f"no cluster answers at {url}" in result.output
