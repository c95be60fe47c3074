"""A metric has the same name for every Accept header."""

import pytest
from prometheus_client import CollectorRegistry, Counter

from server.telemetry.exposition import choose_encoder

PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
INVALID = ["", "application/openmetrics-text; version=x", "text/plain; version=x", ";;,=,"]


@pytest.mark.parametrize(
    "accept", [PROMETHEUS_2, PROMETHEUS_3, "text/plain;version=0.0.4", *INVALID]
)
def test_names_keep_their_colon(accept):
    registry = CollectorRegistry()
    Counter("vllm:made", "Tokens.", ["model"], registry=registry).labels("base").inc()
    encode, content_type = choose_encoder(accept)
    assert 'vllm:made_total{model="base"} 1.0' in encode(registry).decode()
    assert content_type.startswith(("application/openmetrics-text;", "text/plain;"))


def test_prometheus_gets_openmetrics_with_exemplars():
    registry = CollectorRegistry()
    Counter("made", "Tokens.", registry=registry).inc(exemplar={"trace_id": "ab"})
    encode, content_type = choose_encoder(PROMETHEUS_2)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert '# {trace_id="ab"}' in encode(registry).decode()
    assert "trace_id" not in choose_encoder("text/plain")[0](registry).decode()
