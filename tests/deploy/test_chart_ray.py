"""The chart's RayService: the config that it hands Ray Serve, and its pods."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from chart import ON_RAY, of_kind, only, render, render_values


@pytest.fixture(scope="module")
def objects() -> list[Any]:
    return render_values(ON_RAY)


def test_its_config_is_one_that_serve_deploys_and_lorry_builds(objects):
    from ray.serve.schema import ServeDeploySchema

    from cluster.app import build_gateway, build_servers

    config = yaml.safe_load(only(objects, "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema(**config)
    servers, gateway = config["applications"]
    assert servers["import_path"] == f"cluster.app:{build_servers.__name__}"
    assert gateway["import_path"] == f"cluster.app:{build_gateway.__name__}"
    assert servers["args"]["max_replicas"] == 6
    assert servers["args"]["engine_flags"] == ["--max-model-len", "8192"]
    build_servers(servers["args"])
    build_gateway(gateway["args"])
    service = only(objects, "Service")["spec"]
    assert service["selector"]["ray.io/node-type"] == "head"
    head = only(objects, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    marked = yaml.safe_load(yaml.safe_load(head["rayStartParams"]["resources"]))
    assert set(marked) == {gateway["args"]["resource"]}, "the gateway runs where calls go"
    assert service["ports"][0]["targetPort"] == "http"


def test_it_stands_in_the_place_of_a_deployment_with_the_same_pods(objects):
    assert of_kind(objects, "Deployment") == of_kind(objects, "ScaledObject") == []
    cluster = only(objects, "RayService")["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 6)
    deployed = only(render("a bucket"), "Deployment")["spec"]["template"]["spec"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        for part in ("securityContext", "volumes"):
            assert pod[part] == deployed[part]
        (container,), (other,) = pod["containers"], deployed["containers"]
        for part in ("image", "securityContext", "volumeMounts", "envFrom"):
            assert container[part] == other[part]
        names = {each["name"] for each in container["env"]}
        assert names >= {each["name"] for each in other["env"]} - {"LORRY_REPLICA"}
        assert "LORRY_REPLICA" not in names, "each replica gives its server a name"


def test_only_its_own_pods_and_the_operator_reach_rays_ports(objects):
    inside, calls = only(objects, "NetworkPolicy")["spec"]["ingress"]
    assert "ports" not in inside
    own, operator = inside["from"]
    assert own["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"
    assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "kuberay-operator"
    assert calls["ports"] == [{"port": "http", "protocol": "TCP"}]
