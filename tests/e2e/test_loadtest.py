"""The load test on a real engine with marked adapters, as `make loadtest` runs it.

The server has fewer slots and places than adapters, and aliases move while calls run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from admin_client import TOKEN, AdminClient
from server_process import ROOT
from shop import BASE

from loadtest.markers.manifest import load_manifest

SCENARIO = """
name: short
adapters: 6
server: {max_loras: 2, max_cpu_loras: 3}
streams:
  mixed:
    adapters: {count: 6}
    base_share: 0.2
    prompt_tokens: {kind: uniform, least: 4, most: 40}
    output_tokens: {kind: uniform, least: 2, most: 12}
    streaming: 0.7
    structured: 0.1
    hang_up: 0.1
  chat: {adapters: {count: 6, popularity: {kind: in-turn}}, endpoint: chat, output_tokens: 6}
phases:
  - name: together
    seconds: 5
    traffic: {mixed: {kind: poisson, rate: 4}, chat: {kind: closed, concurrency: 2}}
  - name: rolling
    seconds: 6
    traffic: {mixed: {kind: poisson, rate: 5}}
    actions:
      - {do: publish, at: 0.5, adapter: 0}
      - {do: point, at: 2, every: 1, times: 4, adapter: 0, version: 2}
      - {do: rollback, at: 2.5, every: 1, times: 4, adapter: 0}
      - {do: pin, at: 3, adapter: 1, version: 1}
      - {do: unpin, at: 4, adapter: 1, version: 1}
slo: {ttft_ms: 20000}
expect:
  - {metric: failed, at_most: 0}
  - {metric: goodput_share, at_least: 0.99}
"""


def run(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lorry", "loadtest", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (env or {}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["url", pytest.param("serve", marks=pytest.mark.slow)])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The JSON report on the shared server, or on a server that the load test starts."""
    folder: Path = tmp_path_factory.mktemp("loadtest")
    (folder / "short.yaml").write_text(SCENARIO)
    command = [folder / "short.yaml", "--out", folder / "out", "--json"]
    if request.param == "serve":
        return json.loads(run(*command, "--serve", BASE))
    server, shop = request.getfixturevalue("server"), request.getfixturevalue("shop")
    marked = folder / "marked"
    run("mark", BASE, "--out", marked, "--count", 6)
    manifest = load_manifest(marked)
    with AdminClient(server.url, shop.store) as admin:
        for name in manifest.names:
            admin.upload(name, manifest.folder(name, 1))
    given = ("--url", server.url, "--markers", marked, "--adapters", "lt-*")
    return json.loads(run(*command, *given, env={"LORRY_ADMIN_TOKEN": TOKEN}))


def test_every_answer_comes_from_the_requested_adapter_and_version(report):
    assert report["wrong"] == []
    # Structured answers cannot be judged: a schema constrains them.
    assert report["judged"] > 0.7 * report["summary"]["overall"]["requests"]


def test_client_metrics_and_spans_agree(report):
    agreement = report["agreement"]
    assert agreement["disagreements"] == []
    assert agreement["left_out"] == []
    # Several counters per version; on a server started for the run, also a span per call.
    has_spans = "started for this" in report["target"]
    assert agreement["compared"] > (report["summary"]["overall"]["requests"] if has_spans else 50)


def test_all_actions_ran_under_load(report):
    done = [each["what"] for each in report["actions"]]
    assert len(done) == 11
    assert all(not each["failure"] for each in report["actions"])


def test_all_adapters_were_called_although_places_are_few(report):
    assert len(report["summary"]["adapters"]) == 6
    assert report["summary"]["overall"]["failed"] == 0
    assert report["passed"]


KILLED = """
name: killed
adapters: 2
vocabulary: 896
server: {max_loras: 2, max_cpu_loras: 2, max_engine_restarts: 2}
streams:
  streamed: {adapters: {count: 2}, base_share: 0.2, prompt_tokens: 16, output_tokens: 64}
  whole: {adapters: {count: 2}, prompt_tokens: 16, output_tokens: 32, streaming: 0}
phases:
  - name: killing
    seconds: 60
    outage: true
    traffic: {streamed: {kind: closed, concurrency: 4}, whole: {kind: closed, concurrency: 2}}
    actions: [{do: kill-engine, at: 3, every: 28, times: 2}]
  - {name: after, seconds: 3, traffic: {streamed: {kind: closed, concurrency: 4}}}
expect:
  - {metric: failed_unanswered, phase: killing, at_most: 0}
  - {metric: cut_off, phase: killing, at_most: 0}
"""


@pytest.mark.slow
def test_calls_without_a_part_of_an_answer_outlive_the_engine(tmp_path):
    """A server of its own, whose engine the load test kills twice."""
    (tmp_path / "killed.yaml").write_text(KILLED)
    command = (tmp_path / "killed.yaml", "--serve", BASE, "--out", tmp_path / "out", "--json")
    report = json.loads(run(*command))
    assert report["passed"]
    assert [each["what"] for each in report["actions"]] == ["kill-engine"] * 2
    killing = report["summary"]["phases"]["killing"]
    assert list(killing["reasons"]) == ["stream_error_engine_dead"]  # of streams that had begun
    assert killing["ok"] > killing["failed"]
    assert report["agreement"]["disagreements"] == []
    # The calls that the engine's deaths broke are compared too.
    assert report["agreement"]["left_out"] == []
