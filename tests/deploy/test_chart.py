"""The Helm chart: valid objects of known series, from the files of deploy/."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import (
    BASE,
    CHART,
    VARIANTS,
    helm,
    of_kind,
    only,
    pods,
    server,
    tool,
)
from deploy_files import (
    DASHBOARDS,
    DEPLOY,
    PROMETHEUS,
    ROOT,
    RULES,
    Expression,
    known_metrics,
    load,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_lint_has_nothing_to_say(variant):
    values, presets = VARIANTS[variant]
    files = [f"--values={CHART / each}" for each in presets]
    done = helm("lint", "--strict", CHART, *files, values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def broken(objects: list[Any]) -> list[Any]:
    """Two objects, each with a key that does not exist."""
    deployment, monitor = (
        copy.deepcopy(only(objects, kind)) for kind in ("Deployment", "ServiceMonitor")
    )
    server([deployment])["startupProb"] = {}
    monitor["spec"]["endpoints"][0]["intervall"] = "10s"
    for each in (deployment, monitor):
        each["metadata"]["name"] = "broken"
    return [deployment, monitor]


@pytest.fixture(scope="module")
def faults(rendered) -> list[str]:
    """What is wrong in all objects of all variants, and in two broken ones."""
    objects = [each for variant in rendered.values() for each in variant]
    # Nobody publishes that schema in a package: test_an_inference_pool_... has its fields.
    distinct = {json.dumps(each): each for each in objects if each["kind"] != "InferencePool"}
    text = yaml.safe_dump_all([*distinct.values(), *broken(rendered["everything"])])
    script = ROOT / "tests" / "deploy" / "validate_objects.py"
    done = subprocess.run(
        [tool("python"), script], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines()


def test_every_object_is_valid_for_its_schema(rendered, faults):
    assert len({each["kind"] for each in rendered["everything"]}) == 12
    assert not [fault for fault in faults if "/broken: " not in fault]


def test_the_schemas_find_keys_that_do_not_exist(faults):
    found = [fault for fault in faults if "/broken: " in fault]
    assert len(found) == 2
    assert "startupProb" in found[0]
    assert "endpoints[0].intervall" in found[1]


def test_the_package_holds_the_rules_and_the_dashboards_themselves(tmp_path):
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as files:
        for folder, paths in (("rules", RULES), ("dashboards", DASHBOARDS)):
            for path in paths:
                packed = files.extractfile(f"lorry/files/{folder}/{path.name}")
                assert packed is not None
                assert packed.read() == path.read_bytes()


# --- values ---


def test_the_schema_of_the_values_is_up_to_date():
    build = [sys.executable, DEPLOY / "helm" / "schema.py", "--check"]
    done = subprocess.run(
        build,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": {}}, "no base"),
    ({"model": {"volume": {"emptyDir": {}}}}, "model.name"),
    ({"model": {"hub": "org/name", "path": "a"}}, "model.path"),
    ({"model": {"hub": "/models/a"}}, "/model/hub"),
    ({"replicas": 2}, "catalog.existingSecret"),
    ({"store": {"url": "s3://b/p"}}, "catalog.existingSecret"),
    ({"store": {"existingSecret": "bucket"}}, "store.url"),
    ({"store": {"url": "s3://key:secret@b/p"}}, "/store/url"),
    ({"store": {"url": "s3://b/p?token=secret"}}, "/store/url"),
    ({"store": {"url": "s3://b", "cacheSize": "1e9"}}, "/store/cacheSize"),
    (
        {"store": {"url": "s3://b", "existingClaim": "a"}, "catalog": {"existingSecret": "a"}},
        "exclude each other",
    ),
    ({"replicas": 2, "catalog": {"existingSecret": "a"}}, "store.accessMode"),
    (
        {"replicas": 2, "catalog": {"existingSecret": "a"}, "store": {"existingClaim": "mine"}},
        "store.accessMode",
    ),
    (
        {"autoscaling": {"enabled": True}, "monitoring": {"serviceMonitor": {"enabled": True}}},
        "catalog.existingSecret",
    ),
    ({"autoscaling": {"enabled": True, "maxReplicas": 1}}, "monitoring.serviceMonitor"),
    ({"autoscaling": {"minReplicas": 9}}, "maxReplicas"),
    ({"inferencePool": {"enabled": True}}, "endpointPicker"),
    ({"settings": {"max_lora": 4}}, "'max_lora' not allowed"),
    ({"settings": {"max_lora_rank": 5}}, "/settings/max_lora_rank"),
    ({"settings": {"port": 80}}, "'port' not allowed"),
    ({"replica": 2}, "'replica' not allowed"),
]


def test_values_that_cannot_work_are_refused_with_what_to_do():
    tool("helm")
    wrong = []
    for values, said in REFUSED:
        given = BASE | values
        done = helm("template", "lorry", CHART, values=given)
        if done.returncode == 0 or said not in done.stderr:
            wrong.append((values, done.stderr))
    assert not wrong


def test_the_values_of_the_manual_are_valid():
    page = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"```yaml\n(# mine\.yaml.*?)```", page, re.S)
    presets = re.findall(r"deploy/helm/lorry/(values-\w+\.yaml)", page)
    assert presets
    for preset in presets:
        done = helm("template", "lorry", CHART, "-f", CHART / preset, values=yaml.safe_load(block))
        assert done.returncode == 0, done.stderr


def test_the_chart_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert load(CHART / "Chart.yaml")["appVersion"] == project["version"]


# --- what stands around it ---


def test_selectors_mean_the_servers_pods_and_no_other(everything):
    server_labels, test_labels = (pod["metadata"]["labels"] for pod in pods(everything))
    selectors = {
        "Deployment": ("selector", "matchLabels"),
        "Service": ("selector",),
        "PodDisruptionBudget": ("selector", "matchLabels"),
        "NetworkPolicy": ("podSelector", "matchLabels"),
        "InferencePool": ("selector", "matchLabels"),
    }
    for kind, path in selectors.items():
        selector = only(everything, kind)["spec"]
        for key in path:
            selector = selector[key]
        assert selector.items() <= server_labels.items(), kind
        assert not selector.items() <= test_labels.items(), kind
    chosen = only(everything, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= only(everything, "Service")["metadata"]["labels"].items()


def test_the_network_policy_lets_in_callers_the_test_and_prometheus(rendered):
    (ingress,) = only(rendered["everything"], "NetworkPolicy")["spec"]["ingress"]
    (own, callers, prometheus) = ingress["from"]
    test_labels = pods(rendered["everything"])[1]["metadata"]["labels"]
    assert own["podSelector"]["matchLabels"].items() <= test_labels.items()
    assert callers == {"podSelector": {}}
    assert "namespaceSelector" in prometheus
    closed = only(rendered["a volume"], "NetworkPolicy")["spec"]
    assert len(closed["ingress"][0]["from"]) == 2
    assert closed["policyTypes"] == ["Ingress"]


def test_the_job_and_the_interval_are_those_that_the_rules_expect(everything):
    monitor = only(everything, "ServiceMonitor")["spec"]
    config = load(PROMETHEUS / "prometheus.yml")
    job = only(everything, "Service")["metadata"]["labels"][monitor["jobLabel"]]
    assert job == config["scrape_configs"][0]["job_name"]
    assert f'job="{job}"' in (PROMETHEUS / "rules" / "alerts.yml").read_text()
    assert monitor["endpoints"][0]["interval"] == config["global"]["scrape_interval"]


def test_rules_and_dashboards_are_the_files_of_deploy(everything):
    groups = [
        group for each in of_kind(everything, "PrometheusRule") for group in each["spec"]["groups"]
    ]
    assert groups == [group for path in RULES for group in load(path)["groups"]]
    maps = {}
    for each in of_kind(everything, "ConfigMap"):
        maps |= each["data"]
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert maps == {f"lorry-{path.name}": path.read_text() for path in DASHBOARDS}
    for name, folder in (("rules", RULES[0].parent), ("dashboards", DASHBOARDS[0].parent)):
        assert (CHART / "files" / name).readlink() == Path("../../..") / folder.relative_to(DEPLOY)


def test_autoscaling_reads_existing_series_of_this_releases_servers(everything):
    scaled = only(everything, "ScaledObject")["spec"]
    deployment = only(everything, "Deployment")
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    known = known_metrics()
    for trigger in scaled["triggers"]:
        query = trigger["metadata"]["query"]
        metrics = Expression(trigger["name"], query).metrics
        assert metrics == {trigger["name"].replace("-", "_"), "lorry_engine_up"}
        assert metrics <= known
        service = only(everything, "Service")["metadata"]["name"]
        assert query.count(f'{{namespace="prod", service="{service}"}}') == 2


def test_queries_of_autoscaling_parse(everything, tmp_path):
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    triggers = only(everything, "ScaledObject")["spec"]["triggers"]
    rules = [
        {"record": f"trigger:number{number}", "expr": each["metadata"]["query"]}
        for number, each in enumerate(triggers)
    ]
    path = tmp_path / "triggers.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "triggers", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_inference_pool_names_the_picker_as_version_1_of_its_api_does(everything):
    pool = only(everything, "InferencePool")
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert set(pool["spec"]) == {"endpointPickerRef", "selector", "targetPorts"}
    assert pool["spec"]["endpointPickerRef"] == {
        "name": "picker",
        "port": {"number": 9002},
        "failureMode": "FailClose",
    }
