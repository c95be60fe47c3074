"""Prometheus rules and dashboard PromQL: valid, unit-tested, and of existing metrics."""

import ast
import re
import shutil
import subprocess

import pytest
import yaml
from deploy_files import (
    DASHBOARDS,
    DEPLOY,
    PROMETHEUS,
    ROOT,
    RULES,
    annotation_expressions,
    filled,
    known_metrics,
    load,
    panel_expressions,
    rule_expressions,
    rules,
)

TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALL = [
    *panel_expressions(),
    *annotation_expressions(),
    *rule_expressions("record"),
    *rule_expressions("alert"),
]
SUFFIX = re.compile(r"_(total|bucket|count|sum)$")


def tool(name: str) -> str:
    if (found := shutil.which(name)) is None:
        pytest.skip(
            f"{name} is not installed (Debian: apt-get install prometheus{{,-alertmanager}})"
        )
    return found


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def known() -> set[str]:
    return known_metrics()


@pytest.mark.parametrize("expression", ALL, ids=lambda each: each.where)
def test_every_queried_metric_exists_in_the_code(expression, known):
    assert expression.metrics
    assert not [m for m in expression.metrics if not {m, SUFFIX.sub("", m)} & known]


def test_configuration_and_rules_are_valid():
    run(tool("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    run(tool("promtool"), "check", "rules", *RULES)


def test_alertmanager_configuration_is_valid():
    run(tool("amtool"), "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


def test_the_promql_of_every_panel_parses(tmp_path):
    records = [
        {"record": f"panel:number{number}:value", "expr": filled(each.promql)}
        for number, each in enumerate(panel_expressions() + annotation_expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    assert len(records) > 20 * len(DASHBOARDS)
    run(tool("promtool"), "check", "rules", path)


def test_alert_unit_tests_pass():
    run(tool("promtool"), "test", "rules", *TESTS)


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules("alert")])
def test_every_alert_has_a_unit_test_that_fires_and_clears(alert):
    cases = [
        sorted(
            (_seconds(case["eval_time"]), bool(case["exp_alerts"]))
            for case in test["alert_rule_test"]
            if case["alertname"] == alert
        )
        for path in TESTS
        for test in load(path)["tests"]
    ]
    turns = [[fired for _, fired in case] for case in cases if case]
    # One unit test covers all three: quiet before, firing, quiet after.
    assert any(turn[0] is False and True in turn and turn[-1] is False for turn in turns)


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_every_alert_has_a_severity_a_dashboard_and_a_runbook_section(rule):
    assert rule["alert"].startswith("Lorry")
    assert rule["labels"]["severity"] in ("page", "ticket")
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "dashboard", "runbook_url"}
    path, _, anchor = annotations["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    assert f"\n### {rule['alert']}\n" in (ROOT / path).read_text()
    pages = {path.stem for path in DASHBOARDS}
    assert annotations["dashboard"].partition("?")[0].removeprefix("/d/lorry-") in pages


def test_every_runbook_section_is_of_an_existing_alert():
    text = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"^### (Lorry\w+)$", text, re.M)) == {
        rule["alert"] for rule in rules("alert")
    }


def test_the_first_token_objective_is_a_bucket_of_its_histogram():
    rules_text = (PROMETHEUS / "rules" / "recording.yml").read_text()
    bounds = set(re.findall(r'time_to_first_token_seconds_bucket\{[^}]*le="([\d.]+)"', rules_text))
    (buckets,) = (
        node.value
        for node in ast.walk(ast.parse((ROOT / "server" / "telemetry" / "metrics.py").read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_FIRST_TOKEN_BUCKETS"
    )
    assert bounds
    assert {float(bound) for bound in bounds} <= set(map(float, ast.literal_eval(buckets)))


def _seconds(duration: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))
