"""Generates lorry/values.schema.json, by which Helm refuses wrong values: `make docs`.

The values and their types are those of values.yaml; an empty map or list there may hold anything.
The settings are those of `lorry serve`. `--check` compares only; a test runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from server.settings import Settings

CHART = Path(__file__).parent / "lorry"
TARGET = CHART / "values.schema.json"
# The chart sets these itself, from values of their own or to what the image has.
NOT_GIVEN = {
    *("admin_token", "admin_token_file", "cache", "catalog"),
    *("host", "model", "port", "served_model_name", "store"),
    *("insecure_no_auth", "open_metrics", "require_keys"),
    *("ssl_certfile", "ssl_keyfile"),  # TLS ends at an ingress or a mesh
}
_KEYWORDS = (
    *("type", "enum", "items", "minimum", "maximum", "exclusiveMinimum", "minLength", "pattern"),
    "description",
)
_POSITIVE = {"minimum": 1}
_MORE: dict[str, Any] = {
    "replicas": {"minimum": 0},
    "model.hub": {"pattern": r"^([^/@\s]+/[^/@\s]+(@\S+)?)?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "store.accessMode": {"enum": ["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]},
    "startupSeconds": {"minimum": 5},
    "preStopSeconds": {"minimum": 0},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"]},
    "autoscaling.minReplicas": _POSITIVE,
    "autoscaling.maxReplicas": _POSITIVE,
    "autoscaling.callsPerReplica": _POSITIVE,
    "autoscaling.waitingPerReplica": _POSITIVE,
    "inferencePool.failureMode": {"enum": ["FailClose", "FailOpen"]},
}


def build() -> dict[str, Any]:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = {"$schema": "http://json-schema.org/draft-07/schema#"} | _describe(values, "")
    schema["properties"]["global"] = {"type": "object"}  # Helm's own, where this is a subchart
    schema["properties"]["settings"] = {
        "type": "object",
        "properties": _settings(),
        "required": ["drain_seconds"],
        "additionalProperties": False,
    }
    return schema


def _describe(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        inside = {key: _describe(each, f"{path}.{key}".lstrip(".")) for key, each in value.items()}
        # Maps of Kubernetes' own, such as labels, have dots in their keys or take any.
        is_open = path.endswith("labels")
        return {"type": "object", "properties": inside, "additionalProperties": is_open}
    for kind, name in ((bool, "boolean"), (int, "integer"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return {"type": name} | _MORE.get(path, {})
    return {"type": "object"}


def _settings() -> dict[str, Any]:
    properties = Settings.model_json_schema()["properties"]
    return {name: _setting(properties[name]) for name in properties if name not in NOT_GIVEN}


def _setting(property_: dict[str, Any]) -> dict[str, Any]:
    """Without default and title, and without the `null` of an optional one."""
    kinds = [each for each in property_.get("anyOf", ()) if each.get("type") != "null"]
    merged = property_ | (kinds[0] if kinds else {})
    return {key: merged[key] for key in _KEYWORDS if key in merged}


def main() -> int:
    text = json.dumps(build(), indent=2) + "\n"
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        sys.stderr.write(f"{TARGET} is not up to date: run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
