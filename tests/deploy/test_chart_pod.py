"""The chart's pods agree with the image and with the code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from chart import (
    CHART,
    SETTINGS,
    of_kind,
    only,
    pods,
    server,
    variables,
)
from deploy_files import (
    ROOT,
    load,
)
from dockerfile import IMAGE_ENVIRONMENT, VOLUMES, runtime
from opentelemetry.sdk import environment_variables

from server.errors import SettingsInvalid
from server.paths import INFERENCE_PATHS
from server.settings import ENV_PREFIX, Settings, load_settings


def test_variables_are_settings_or_known_to_who_reads_them(rendered):
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    known |= {name for name in dir(environment_variables) if name.startswith("OTEL_")}
    folder = Path(huggingface_hub.__file__).parent
    read_by_hub = (folder / "constants.py").read_text() + (folder / "utils/_auth.py").read_text()
    known |= {name for name in ("HF_HOME", "HF_TOKEN") if f'"{name}"' in read_by_hub}
    # The last is everything's own.
    known |= {"POD_NAME", "VLLM_LOGGING_LEVEL"}
    for variant, objects in rendered.items():
        names = [each["name"] for each in server(objects)["env"]]
        assert set(names) <= known, variant
        assert len(names) == len(set(names)), variant


def test_the_server_reads_from_its_variables_what_the_values_say(everything, monkeypatch):
    given = {k: v for k, v in variables(everything).items() if isinstance(v, str)}
    given = {k: v for k, v in given.items() if k.startswith(ENV_PREFIX)}
    del given["LORRY_ADMIN_TOKEN_FILE"]  # is not on this machine
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(model=Path("/model"))
    for name, value in SETTINGS.items():
        read = getattr(settings, name)
        assert (list(read) if isinstance(read, tuple) else read) == value, name
    assert settings.base_name == "my-base"


def test_calls_need_keys_unless_the_values_say_that_they_need_none(rendered):
    said = {
        variant: {
            name: value
            for name, value in variables(objects).items()
            if name in ("LORRY_REQUIRE_KEYS", "LORRY_INSECURE_NO_AUTH", "LORRY_OPEN_METRICS")
        }
        for variant, objects in rendered.items()
    }
    shut = {"LORRY_REQUIRE_KEYS": "true", "LORRY_OPEN_METRICS": "true"}
    assert said.pop("everything") == {
        "LORRY_INSECURE_NO_AUTH": "true",
        "LORRY_OPEN_METRICS": "false",
    }
    assert list(said.values()) == [shut] * 3


@pytest.mark.parametrize(("key", "needs", "code"), [("", True, 0), ("x", True, 1), ("", False, 0)])
def test_helms_test_calls_with_a_key_or_finds_that_one_is_needed(serve, key, needs, code):
    def answer(handler, *_):
        is_shut = needs and handler.path != "/readyz"
        body = {"data": [{"id": "base"}], "model": "base"}
        handler.send_response(401 if is_shut else 200)
        handler.end_headers()
        handler.wfile.write(json.dumps(body).encode())

    kind = type("Answers", (BaseHTTPRequestHandler,), {"do_GET": answer, "do_POST": answer})
    url = serve(kind)
    command = [sys.executable, CHART / "files" / "smoke.py", url]
    environment = os.environ | ({"LORRY_API_KEY": key} if key else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("401: as it must be" in done.stdout) == (needs and not key)


@pytest.fixture
def serve():
    running = []

    def start(kind: type[BaseHTTPRequestHandler]) -> str:
        started = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        running.append(started)
        threading.Thread(target=started.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started.server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def test_variables_of_services_would_stop_the_server(rendered, monkeypatch):
    for objects in rendered.values():
        assert all(pod["spec"]["enableServiceLinks"] is False for pod in pods(objects))
    monkeypatch.setenv("LORRY_PORT", "tcp://10.0.0.1:8000")  # of a Service named lorry
    with pytest.raises(SettingsInvalid, match="port"):
        load_settings(model=Path("/model"))


def test_the_command_is_the_images_and_names_the_model(rendered):
    arguments = {variant: server(objects)["args"] for variant, objects in rendered.items()}
    assert arguments == {
        "a volume": ["/model"],
        "a processor": ["/model"],
        "a GPU": ["org/name"],
        "everything": ["org/name@main", "--", "--max-model-len", "8192"],
    }
    for objects in rendered.values():
        assert [*server(objects)["command"], "/model"] == json.loads(runtime("ENTRYPOINT"))


def test_what_the_image_writes_to_is_mounted_and_the_rest_is_read_only(rendered):
    for variant, objects in rendered.items():
        pod, container = pods(objects)[0]["spec"], server(objects)
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        assert {*VOLUMES, "/tmp", "/dev/shm"} <= set(mounts), variant
        assert {each["name"] for each in mounts.values()} == {
            each["name"] for each in pod["volumes"]
        }
        is_fetched = "/" not in container["args"][0][:1]
        assert mounts["/model"]["readOnly"] is not is_fetched, variant
        if is_fetched:
            assert variables(objects)["HF_HOME"] in mounts


def test_ports_are_those_of_the_image(everything):
    (port,) = server(everything)["ports"]
    assert str(port["containerPort"]) == IMAGE_ENVIRONMENT["LORRY_PORT"]
    assert only(everything, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert only(everything, "InferencePool")["spec"]["targetPorts"] == [
        {"number": port["containerPort"]}
    ]
    assert only(everything, "ServiceMonitor")["spec"]["endpoints"][0]["port"] == port["name"]


def test_requested_paths_are_the_servers(everything):
    source = (ROOT / "server" / "http" / "app.py").read_text()
    container = server(everything)
    probed = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert probed == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    scraped = only(everything, "ServiceMonitor")["spec"]["endpoints"][0]["path"]
    for path in (*probed.values(), scraped, "/v1/models"):
        assert f'.get("{path}"' in source, path
    smoke = (CHART / "files" / "smoke.py").read_text()
    assert only(everything, "Pod")["spec"]["containers"][0]["args"][0].strip() == smoke.strip()
    for path in ('"/readyz"', '"/v1/models"', '"/v1/completions"'):
        assert path in smoke
    assert "/v1/completions" in INFERENCE_PATHS


def test_a_server_has_time_to_start_and_to_drain(rendered):
    for objects in rendered.values():
        pod, container = pods(objects)[0]["spec"], server(objects)
        waited = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drained = int(variables(objects)["LORRY_DRAIN_SECONDS"])
        # Beyond the drain: for connections and calls to end, and for the export of spans.
        assert pod["terminationGracePeriodSeconds"] == waited + drained + 15
        startup = container["startupProbe"]
        longest = startup["periodSeconds"] * startup["failureThreshold"]
        assert only(objects, "Deployment")["spec"]["progressDeadlineSeconds"] > longest
    default = load(CHART / "values.yaml")["settings"]["drain_seconds"]
    assert default == Settings.model_fields["drain_seconds"].default


def test_a_limit_of_processors_is_the_number_of_threads(rendered):
    source = variables(rendered["a processor"])["LORRY_THREADS"]["valueFrom"]
    assert source["resourceFieldRef"]["resource"] == "limits.cpu"
    assert source["resourceFieldRef"]["divisor"] == "1"
    assert "LORRY_THREADS" not in variables(rendered["a GPU"])


def test_a_new_server_waits_for_the_old_one_unless_they_can_share(rendered):
    strategies = {
        variant: only(objects, "Deployment")["spec"]["strategy"]
        for variant, objects in rendered.items()
    }
    assert strategies["a volume"] == strategies["a processor"] == {"type": "Recreate"}
    assert strategies["a GPU"]["rollingUpdate"]["maxSurge"] == 0
    assert strategies["everything"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_pods_pass_the_restricted_pod_security_standard(rendered):
    for objects in rendered.values():
        for pod in (each["spec"] for each in pods(objects)):
            assert pod["automountServiceAccountToken"] is False
            identity = pod["securityContext"]
            assert identity["runAsNonRoot"] is True
            assert f"{identity['runAsUser']}:{identity['runAsGroup']}" == runtime("USER")
            assert identity["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not any(pod.get(each) for each in ("hostNetwork", "hostPID", "hostIPC"))
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }


def test_secrets_are_named_never_made(everything):
    assert not of_kind(everything, "Secret")
    given = variables(everything)
    assert given["LORRY_CATALOG"]["valueFrom"]["secretKeyRef"] == {"name": "catalog", "key": "uri"}
    (smoke,) = only(everything, "Pod")["spec"]["containers"][0]["env"]
    assert smoke["valueFrom"]["secretKeyRef"] == {"name": "smoke", "key": "key"}
    assert given["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    folder, _, file = given["LORRY_ADMIN_TOKEN_FILE"].rpartition("/")
    (mount,) = (each for each in server(everything)["volumeMounts"] if each["mountPath"] == folder)
    (volume,) = (
        each for each in pods(everything)[0]["spec"]["volumes"] if each["name"] == mount["name"]
    )
    assert volume["secret"]["secretName"] == "admin"
    assert [each["path"] for each in volume["secret"]["items"]] == [file]
