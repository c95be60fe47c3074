"""Dockerfile, compose files and systemd unit agree with each other and with the code.

The files are parsed; no container engine is needed.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from deploy_files import DEPLOY, ROOT, load
from dockerfile import DOCKERFILE, IMAGE_ENVIRONMENT, RUNTIME, VOLUMES, runtime
from opentelemetry.sdk import environment_variables

from lorry import COMMANDS
from server import errors
from server.settings import ENV_PREFIX, Settings

SETTINGS = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
COMPOSE = load(DEPLOY / "compose.yaml")
SERVICES = COMPOSE["services"]
PINNED = re.compile(r"[\w./-]+:v?\d+(\.\d+)+[\w.-]*")
DRAIN_SECONDS = Settings.model_fields["drain_seconds"].default
# Read by torch and Triton.
COMPILERS = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}


def host_and_port(address: str) -> tuple[str, int]:
    """(host, port) of `host:port` or of a URL."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def ports(service: str) -> dict[int, tuple[str, int]]:
    """{port in the container: (address, port) on the host}."""
    pairs = [each.rsplit(":", 2) for each in SERVICES[service].get("ports", [])]
    return {int(inside): (address, int(outside)) for address, outside, inside in pairs}


# --- the image ---


def test_both_targets_add_their_packages_to_the_runtime_stage():
    parents = {each.stage: each.rest.split()[0] for each in DOCKERFILE if each.word == "FROM"}
    assert (parents["cpu"], parents["cuda"], parents["runtime"]) == ("runtime", "runtime", "base")
    for target, lock in (("cpu", "requirements/cpu.txt"), ("cuda", "requirements/gpu.txt")):
        steps = [each.rest for each in DOCKERFILE if each.stage == f"build-{target}"]
        assert any("--require-hashes" in step and lock in step for step in steps)
        copies = [each.rest for each in DOCKERFILE if each.stage == target and each.word == "COPY"]
        assert copies == [f"--from=build-{target} /opt/lorry /opt/lorry"]
    assert DOCKERFILE[-1].stage == "cpu", "the default target"


def test_base_images_and_tools_are_pinned():
    bases = {each.rest.split()[0] for each in DOCKERFILE if each.word == "FROM"}
    stages = {each.stage for each in DOCKERFILE}
    assert all(PINNED.fullmatch(base) for base in bases - stages)
    (installs,) = (each.rest for each in DOCKERFILE if "pip install --no-cache-dir" in each.rest)
    assert re.search(r"uv==\d+\.\d+\.\d+ ", installs)
    for step in (each.rest for each in DOCKERFILE if "apt-get" in each.rest):
        assert "--no-install-recommends" in step
        assert step.endswith("rm -rf /var/lib/apt/lists/*")


def test_hadolint_accepts_the_dockerfile():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_development_packages_are_not_in_the_image():
    (setting,) = (each.rest for each in DOCKERFILE if each.rest.startswith("DEVELOPMENT="))
    left_out = set(shlex.split(setting)[0].removeprefix("DEVELOPMENT=").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w-]+", each)[0] for each in project["optional-dependencies"]["dev"]}
    # vLLM needs the first; a shared catalog and a store in a bucket need their drivers, and a
    # cluster needs Ray.
    assert wanted - left_out == {"openai", "psycopg", "ray", "s3fs"}
    assert left_out <= wanted


def test_image_runs_lorry_serve_as_non_root_and_stops_with_sigterm():
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", runtime("USER"))
    assert runtime("STOPSIGNAL") == "SIGTERM"
    entry = json.loads(runtime("ENTRYPOINT"))
    assert entry[:2] == ["tini", "--"]
    assert entry[2:4] == ["lorry", "serve"]
    assert "serve" in COMMANDS
    assert not any(each.word in ("CMD", "ADD") for each in DOCKERFILE)


def test_the_health_check_requests_an_existing_path_at_the_served_port():
    check = runtime("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    (url,) = re.findall(r"http://[^']+", command[-1])
    port = IMAGE_ENVIRONMENT["LORRY_PORT"]
    assert (urlsplit(url).hostname, str(urlsplit(url).port)) == ("127.0.0.1", port)
    assert f'@app.get("{urlsplit(url).path}")' in (ROOT / "server" / "http" / "app.py").read_text()
    compile(command[-1], "healthcheck", "exec")
    assert runtime("EXPOSE") == port


def test_image_variables_are_settings_and_written_folders_are_volumes():
    ours = {name: v for name, v in IMAGE_ENVIRONMENT.items() if name.startswith(ENV_PREFIX)}
    assert set(ours) <= SETTINGS
    for name in ("LORRY_STORE", "LORRY_CACHE", *COMPILERS):
        assert f"/{IMAGE_ENVIRONMENT[name].split('/')[1]}" in VOLUMES, name
    assert json.loads(runtime("ENTRYPOINT"))[4] in VOLUMES
    assert ours["LORRY_HOST"] == "0.0.0.0"  # compose publishes it on the loopback address
    made = next(each.rest for each in RUNTIME if each.word == "RUN")
    assert made.endswith(" ".join(VOLUMES))


def test_dockerignore_keeps_the_files_that_the_build_needs():
    kept = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert all((ROOT / name).exists() for name in kept)
    packages = {"adapters", "bench", "loadtest", "server", "training"}
    assert (
        packages
        | {"lorry.py", "pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements"}
        <= kept
    )
    for each in DOCKERFILE:
        if each.word == "COPY" and not each.rest.startswith("--from"):
            source = each.rest.split()[0]
            assert source == "." or (ROOT / source).is_file()


# --- compose ---


def test_compose_images_are_pinned_or_built():
    for name, service in SERVICES.items():
        assert "build" in service or PINNED.fullmatch(service["image"]), name
    build = SERVICES["server"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    cuda = load(DEPLOY / "compose.cuda.yaml")["services"]["server"]["build"]["target"]
    assert {build["target"], cuda} <= {each.stage for each in DOCKERFILE}


def test_ports_are_published_once_and_on_the_loopback_address():
    published = [place for name in SERVICES for place in ports(name).values()]
    assert {address for address, _ in published} == {"127.0.0.1"}
    assert len({port for _, port in published}) == len(published) == 5


def test_every_service_is_confined_and_mounts_declared_volumes():
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for mount in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")[0]
            known = source in COMPOSE["volumes"] or (DEPLOY / source).exists()
            assert known, f"{name}: {mount}"


def test_the_server_has_its_volumes_time_to_drain_and_known_variables():
    server = SERVICES["server"]
    mounted = {re.sub(r"\$\{[^}]*\}", "x", mount).split(":")[1] for mount in server["volumes"]}
    assert mounted == set(VOLUMES)
    assert int(server["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
    assert any(place.startswith("/tmp:exec") for place in server["tmpfs"])
    known = SETTINGS | {name for name in dir(environment_variables) if name.startswith("OTEL_")}
    assert set(server["environment"]) <= known
    assert set(ports("server")) == {int(IMAGE_ENVIRONMENT["LORRY_PORT"])}


def test_prometheus_scrapes_the_server_and_alerts_alertmanager():
    config = load(DEPLOY / "prometheus" / "prometheus.yml")
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    assert jobs["lorry"] == [f"server:{IMAGE_ENVIRONMENT['LORRY_PORT']}"]
    (alertmanagers,) = config["alerting"]["alertmanagers"][0]["static_configs"]
    for target in alertmanagers["targets"]:
        service, port = host_and_port(target)
        assert port in ports(service)
    assert '@app.get("/metrics")' in (ROOT / "server" / "http" / "app.py").read_text()


def test_grafana_datasources_are_services_at_their_ports():
    for source in load(DEPLOY / "grafana/provisioning/datasources/lorry.yaml")["datasources"]:
        service, port = host_and_port(source["url"])
        assert port in ports(service), source["name"]
    scrape = load(DEPLOY / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert source_of("prometheus")["jsonData"]["timeInterval"] == scrape


def source_of(uid: str) -> dict:
    sources = load(DEPLOY / "grafana/provisioning/datasources/lorry.yaml")["datasources"]
    return next(each for each in sources if each["uid"] == uid)


def test_spans_go_from_the_server_through_the_collector_to_jaeger():
    collector = load(DEPLOY / "otel" / "collector.yaml")
    listens = host_and_port(collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"])
    sent_to = host_and_port(SERVICES["server"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert sent_to == ("collector", listens[1])  # gRPC, the default protocol
    assert host_and_port(collector["exporters"]["otlp_grpc"]["endpoint"]) == ("jaeger", 4317)
    (pipeline,) = collector["service"]["pipelines"].values()
    for part in ("receivers", "processors", "exporters"):
        assert set(pipeline[part]) == set(collector[part])
    mounted = SERVICES["collector"]["volumes"][0].split(":")
    assert SERVICES["collector"]["command"] == [f"--config={mounted[1]}"]


@pytest.mark.parametrize("service", ["prometheus", "alertmanager"])
def test_service_options_exist(service):
    program = shutil.which({"alertmanager": "prometheus-alertmanager"}.get(service, service))
    if program is None:
        pytest.skip(f"{service} is not installed (Debian: prometheus, prometheus-alertmanager)")
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    for option in SERVICES[service]["command"]:
        assert f"{option.partition('=')[0]}=" in done.stdout + done.stderr, option


# --- without containers ---


def read_unit() -> dict[str, list[str]]:
    pairs = [
        line.split("=", 1)
        for line in (DEPLOY / "systemd" / "lorry.service").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    ]
    return {key: [value for k, value in pairs if k == key] for key, _ in pairs}


def test_the_unit_starts_the_server_and_leaves_it_time_to_drain():
    unit = read_unit()
    assert unit["ExecStart"] == ["/opt/lorry/.venv/bin/lorry serve"]
    assert (unit["KillSignal"], unit["KillMode"]) == (["SIGTERM"], ["mixed"])
    assert int(unit["TimeoutStopSec"][0]) > DRAIN_SECONDS
    codes = {
        each.exit_code
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.StartupError)
    }
    assert set(map(int, unit["RestartPreventExitStatus"][0].split())) <= codes


def test_unit_variables_are_settings_and_its_folders_are_its_own():
    text = (DEPLOY / "systemd" / "lorry.env").read_text()
    variables = dict(re.findall(r"^#?([A-Z_]+)=(.+)$", text, re.M))
    otel = {name for name in dir(environment_variables) if name.startswith("OTEL_")}
    assert set(variables) <= SETTINGS | COMPILERS | otel
    unit = read_unit()
    assert variables["LORRY_STORE"].startswith(f"/var/lib/{unit['StateDirectory'][0]}/")
    assert variables["LORRY_CACHE"] == f"/var/cache/{unit['CacheDirectory'][0]}"
