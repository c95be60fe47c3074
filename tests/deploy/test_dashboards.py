"""Grafana's dashboards are what their sources make, and hang together."""

import re
import subprocess
import sys

import pytest
from deploy_files import DASHBOARDS, DEPLOY, dashboards, load, panels

BUILT_IN = re.compile(r"__\w+")
PAGES = dashboards()
LATENCIES = (
    *("time_to_first_token", "inter_token_latency", "request_duration"),
    *("queue_time", "prefill_time", "decode_time"),
)


@pytest.fixture(params=PAGES, name="page")
def one_page(request):
    return PAGES[request.param]


def test_the_json_in_the_tree_is_what_the_sources_make():
    build = [sys.executable, DEPLOY / "grafana" / "build.py", "--check"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_the_three_pages_and_grafana_is_told_where():
    assert {page["uid"] for page in PAGES.values()} == {
        "lorry-overview", "lorry-adapter", "lorry-residency",
    }  # fmt: skip
    provider = load(DEPLOY / "grafana/provisioning/dashboards/lorry.yaml")["providers"][0]
    mounts = load(DEPLOY / "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert DASHBOARDS[0].parent == DEPLOY / "grafana" / "dashboards"


def test_panels_have_their_own_ids_and_places(page):
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


def test_every_graph_and_number_says_its_unit(page):
    for panel in panels(page):
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_every_variable_that_is_used_is_declared_and_the_other_way_round(page):
    declared = {each["name"] for each in page["templating"]["list"]}
    told = [target["expr"] for panel in panels(page) for target in panel["targets"]]
    told += [each["query"]["query"] for each in page["templating"]["list"] if "refId" in str(each)]
    used = {name for text in told for name in re.findall(r"\$(\w+)", text)}
    assert {name for name in used if not BUILT_IN.fullmatch(name)} | {"datasource"} == declared
    for panel in panels(page):
        assert panel["datasource"]["uid"] == "${datasource}"


def test_the_latencies_carry_exemplars_and_the_rest_does_not(page):
    for panel in panels(page):
        if panel["type"] != "timeseries":
            continue
        reads = panel["targets"][0]["expr"]
        expected = "_bucket" in reads and any(name in reads for name in LATENCIES)
        assert any(target["exemplar"] for target in panel["targets"]) == expected, panel["title"]


def test_links_lead_to_pages_that_exist(page):
    known = {each["uid"] for each in PAGES.values()}
    linked = set(re.findall(r"/d/([\w-]+)", str(page)))
    assert linked <= known
    assert {"tags": ["lorry"]}.items() <= {"tags": page["tags"]}.items()


def test_an_exemplar_leads_to_the_tracing_source_by_the_label_that_the_server_writes():
    sources = load(DEPLOY / "grafana/provisioning/datasources/lorry.yaml")["datasources"]
    by_uid = {each["uid"]: each for each in sources}
    (way,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    # That the server writes it: tests/server/http/test_middleware.py and tests/e2e.
    assert way["name"] == "trace_id"
    assert by_uid[way["datasourceUid"]]["type"] == "jaeger"
