"""Grafana's dashboards: built from their sources, consistent, and linked to each other."""

import re
import subprocess
import sys

import pytest
from deploy_files import DASHBOARDS, DEPLOY, ROOT, dashboards, load, panels

BUILT_IN = re.compile(r"__\w+")
PAGES = dashboards()
LATENCIES = (
    *("time_to_first_token", "inter_token_latency", "request_duration"),
    *("queue_time", "prefill_time", "decode_time"),
)


@pytest.fixture(params=PAGES, name="page")
def each_page(request):
    return PAGES[request.param]


def test_dashboard_files_are_up_to_date_with_their_sources():
    build = [sys.executable, DEPLOY / "grafana" / "build.py", "--check"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_grafana_is_provisioned_with_all_three_dashboards():
    assert {page["uid"] for page in PAGES.values()} == {
        "lorry-overview", "lorry-adapter", "lorry-residency",
    }  # fmt: skip
    provider = load(DEPLOY / "grafana/provisioning/dashboards/lorry.yaml")["providers"][0]
    mounts = load(DEPLOY / "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert DASHBOARDS[0].parent == DEPLOY / "grafana" / "dashboards"


def test_panel_ids_are_unique_and_panels_do_not_overlap(page):
    ids = [panel["id"] for panel in page["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_graph_and_stat_has_a_unit(page):
    for panel in panels(page):
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_declared_variables_are_the_used_ones(page):
    declared = {each["name"] for each in page["templating"]["list"]}
    expressions = [target["expr"] for panel in panels(page) for target in panel["targets"]]
    expressions += [
        each["query"]["query"] for each in page["templating"]["list"] if "refId" in str(each)
    ]
    used = {name for text in expressions for name in re.findall(r"\$(\w+)", text)}
    assert {name for name in used if not BUILT_IN.fullmatch(name)} | {"datasource"} == declared
    for panel in panels(page):
        assert panel["datasource"]["uid"] == "${datasource}"


def test_only_latency_graphs_ask_for_exemplars(page):
    for panel in panels(page):
        if panel["type"] != "timeseries":
            continue
        reads = panel["targets"][0]["expr"]
        expected = "_bucket" in reads and any(name in reads for name in LATENCIES)
        assert any(target["exemplar"] for target in panel["targets"]) == expected, panel["title"]


def test_links_lead_to_existing_dashboards(page):
    known = {each["uid"] for each in PAGES.values()}
    assert set(re.findall(r"/d/([\w-]+)", str(page))) <= known
    # The dashboards link to each other by this tag.
    assert page["tags"] == page["links"][0]["tags"] == ["lorry"]


def test_panels_named_in_the_runbook_exist():
    runbook = (ROOT / "docs" / "operations.md").read_text().partition("## Alerts")[2]
    named = set(re.findall(r'(?:Overview|Adapter|Residency), "([^"]+)"', runbook))
    shown = {panel["title"] for page in PAGES.values() for panel in panels(page)}
    assert len(named) > 5
    assert named <= shown


def test_exemplars_link_to_the_tracing_source_by_trace_id():
    sources = load(DEPLOY / "grafana/provisioning/datasources/lorry.yaml")["datasources"]
    by_uid = {each["uid"]: each for each in sources}
    (link,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    # tests/server/http/test_middleware.py and tests/e2e check that the server writes this label.
    assert link["name"] == "trace_id"
    assert by_uid[link["datasourceUid"]]["type"] == "jaeger"
