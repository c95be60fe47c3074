"""Validates objects of Kubernetes, YAML on standard input, against the schemas of their kinds.

Runs on the Python of `make chart-tools`. Prints a line for each fault, and for each kind that no
schema is there for, and exits with 1 if there is one.
"""

from __future__ import annotations

import sys
from typing import Any

import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

OLDEST = "1.30"  # what Chart.yaml asks for
NEWEST = "1.37"
MODELS = {each.__name__: each for each in (PrometheusRule, ScaledObject, ServiceMonitor)}


def faults(found: Any) -> list[str]:
    if (model := MODELS.get(found["kind"])) is not None:
        try:
            read = model.model_validate(found)
        except ValueError as error:
            return [str(error)]
        # The models drop what they do not know.
        kept = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return [] if kept == found else [f"not known to its schema: {lost(found, kept)}"]
    try:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{version}: {'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return ["no schema"]
    return []


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths where two objects differ."""
    if isinstance(given, dict) and isinstance(kept, dict):
        keys = given.keys() | kept.keys()
        pairs = ((f"{path}.{key}", given.get(key), kept.get(key)) for key in sorted(keys))
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = ((f"{path}[{n}]", *both) for n, both in enumerate(zip(given, kept, strict=True)))
    else:
        return [] if given == kept else [path]
    return [each for where, one, other in pairs for each in lost(one, other, where)]


def main() -> int:
    failed = 0
    for each in filter(None, yaml.safe_load_all(sys.stdin)):
        for fault in faults(each):
            failed = 1
            sys.stdout.write(f"{each['kind']}/{each['metadata']['name']}: {fault}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
