"""The load tester on the real engine, as `make loadtest` runs it, with a shorter scenario.

It starts a server of its own with marked adapters: fewer slots and places than adapters, versions
rolled while calls run, and the server stopped and started again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server_process import ROOT
from shop import BASE

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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("loadtest")
    (folder / "short.yaml").write_text(SCENARIO)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lorry", "loadtest", str(folder / "short.yaml")),
            *("--serve", str(BASE), "--out", str(folder / "out"), "--json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_answer_is_of_the_adapter_and_version_asked_for(report):
    assert report["wrong"] == []
    # All but the structured ones, which a schema constrains.
    assert report["judged"] > 0.7 * report["summary"]["overall"]["requests"]


def test_client_metrics_and_spans_count_alike(report):
    agreement = report["agreement"]
    assert agreement["disagreements"] == []
    assert agreement["left_out"] == []
    # Each call has a span, and each version several counters.
    assert agreement["compared"] > report["summary"]["overall"]["requests"]


def test_versions_were_rolled_under_load(report):
    done = [each["what"] for each in report["actions"]]
    assert len(done) == 11
    assert all(not each["failure"] for each in report["actions"])


def test_all_adapters_were_called_although_few_have_a_place(report):
    assert len(report["summary"]["adapters"]) == 6
    assert report["summary"]["overall"]["failed"] == 0
    assert report["passed"]
