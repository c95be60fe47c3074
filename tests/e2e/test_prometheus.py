"""A real Prometheus with deploy/'s rules scrapes the real server: every panel has data, and sums in
PromQL equal the clients' counts."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from admin_client import AdminClient
from deploy_files import (
    annotation_expressions,
    dashboards,
    filled,
    panel_expressions,
    rule_expressions,
)
from shop import ADAPTERS, BASE_NAME

from tests.e2e.prometheus_process import Prometheus, Unavailable

pytestmark = pytest.mark.slow

LOAD_SECONDS = 25
CALLERS = 4
MOST_TOKENS = 8
SERIES = ("adapter", "version", "outcome")
# An alert's expression has a value only while the alert is pending or firing.
SILENT = {rule.where for rule in rule_expressions("alert")} - {"LorryAdapterLoadFailed"}


@dataclass
class Tally:
    """Counts of the clients."""

    since: float = 0.0
    until: float = 0.0
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    prompt: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    traces: set[str] = field(default_factory=set)

    def add(self, response: httpx2.Response) -> None:
        label = response.headers.get("x-lorry-adapter", "_unresolved")
        adapter, _, version = label.partition("@")
        outcome = {200: "ok", 404: "client_error", 503: "rejected"}[response.status_code]
        self.calls[adapter, version, outcome] += 1
        self.traces.add(response.headers["traceresponse"].split("-")[1])
        if outcome == "ok":
            usage = response.json()["usage"]
            self.prompt[adapter] += usage["prompt_tokens"]
            self.made[adapter] += usage["completion_tokens"]


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory) -> Iterator[Prometheus]:
    try:
        running = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url)
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def models(server, shop) -> list[str]:
    """More versions than places, a split, a version without files, an unknown name."""
    with AdminClient(server.url, shop.store) as admin:
        for name in ("orders-json", "orders-sql"):
            admin.upload("seen", admin.object(shop.digests[name]))
        admin.ask("PUT", "/seen/aliases/stable", json={"split": {"1": 70, "2": 30}})
        lost = admin.upload("unseen", _altered(admin, shop))
        for file in admin.object(lost["digest"]).iterdir():
            file.unlink()
    return [BASE_NAME, *ADAPTERS, "seen", "seen@2", "unseen", "nobody"]


@pytest.fixture(scope="module")
def tally(prometheus, server, models) -> Tally:
    tally = Tally(since=prometheus.wait_scraped())
    asyncio.run(_load(server.url, models, tally))
    tally.until = prometheus.wait_scraped()
    return tally


async def _load(url: str, models: list[str], tally: Tally) -> None:
    end = time.monotonic() + LOAD_SECONDS

    async def call_on(client: httpx2.AsyncClient, caller: int) -> None:
        turn = caller
        while time.monotonic() < end:
            turn += 1
            message = {"role": "user", "content": f"{turn} blue lamps to Oslo"}
            body = {"model": models[turn % len(models)], "messages": [message]}
            body["max_tokens"] = MOST_TOKENS
            tally.add(await client.post("/v1/chat/completions", json=body))

    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(call_on(client, caller) for caller in range(CALLERS)))


def _altered(admin: AdminClient, shop: Any) -> Any:
    """An adapter with its own digest, so that deleting its object affects no other version."""
    from safetensors.torch import load_file, save_file

    folder = shop.store.parent / "unseen"
    folder.mkdir()
    source = admin.object(shop.digests["orders-sql"])
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    tensors = {name: tensor * 1.5 for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def growth(prometheus: Prometheus, tally: Tally, metric: str, *by: str) -> Counter[tuple[str, ...]]:
    """Growth of `sum by (...) (metric)` during the load."""
    promql = f"sum by ({', '.join(by)}) ({metric})"
    sums: list[Counter[tuple[str, ...]]] = []
    for moment in (tally.until, tally.since):
        found = prometheus.query(promql, moment)
        sums.append(Counter({tuple(ls.get(name, "") for name in by): round(v) for ls, v in found}))
    return sums[0] - sums[1]


def test_promql_sums_equal_the_clients_counts(prometheus, tally):
    assert len({adapter for adapter, _, _ in tally.calls}) == 7
    assert growth(prometheus, tally, "lorry_requests_total", *SERIES) == tally.calls
    first = growth(prometheus, tally, "lorry_time_to_first_token_seconds_count")
    assert first[()] == sum(n for (*_, outcome), n in tally.calls.items() if outcome == "ok")
    for metric, counted in (("prompt", tally.prompt), ("generation", tally.made)):
        by_adapter = growth(prometheus, tally, f"lorry_{metric}_tokens_total", "adapter")
        assert by_adapter == Counter({(name,): number for name, number in counted.items()})


def test_a_split_shows_by_version(prometheus, tally):
    versions = {version for adapter, version, _ in tally.calls if adapter == "seen"}
    seen = prometheus.query(
        'sum by (version) (rate(lorry_requests_total{adapter="seen"}[1m])) > 0', tally.until
    )
    assert {labels["version"] for labels, _ in seen} == versions == {"1", "2"}


@pytest.mark.parametrize(
    "expression",
    [*panel_expressions(), *annotation_expressions(), *rule_expressions("record")],
    ids=lambda each: each.where,
)
def test_every_panel_and_recorded_rule_has_data(prometheus, tally, expression):
    found = prometheus.query(filled(expression.promql), tally.until)
    assert found
    assert any(value == value for _, value in found), "only NaN"


@pytest.mark.parametrize("expression", rule_expressions("alert"), ids=lambda each: each.where)
def test_every_alert_queries_metrics_with_data(prometheus, tally, expression):
    found = prometheus.query(expression.promql, tally.until)
    assert found or expression.where in SILENT
    for metric in expression.metrics:
        assert prometheus.query(metric, tally.until), metric


def test_the_failed_load_fires_its_alert_for_that_adapter_only(prometheus, tally):
    firing = prometheus.query('ALERTS{alertstate="firing"}', tally.until)
    failed = {ls["adapter"] for ls, _ in firing if ls["alertname"] == "LorryAdapterLoadFailed"}
    assert "unseen" in failed
    assert not failed & {*ADAPTERS, "seen", "base"}
    assert not {ls["alertname"] for ls, _ in firing} & {"LorryServerDown", "LorryEngineDown"}


def test_every_dashboard_variable_has_values(prometheus, tally):
    for page in dashboards().values():
        for variable in page["templating"]["list"]:
            if variable["type"] != "query":
                continue
            asked = filled(variable["query"]["query"])
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", asked).groups()
            assert prometheus.query(f"group by ({label}) ({metric})", tally.until), asked


def test_exemplars_carry_the_trace_ids_of_the_responses(prometheus, tally):
    for metric in ("time_to_first_token", "inter_token_latency", "request_duration", "queue_time"):
        found = prometheus.exemplars(f"lorry_{metric}_seconds_bucket", tally.since)
        traces = {exemplar["labels"]["trace_id"] for exemplar in found}
        assert traces & tally.traces
