"""The text of /metrics in the form that a scraper asks for, with every name as it is.

In OpenMetrics, which Prometheus asks for, prometheus_client writes `_` for the `:` of vLLM's names
(`vllm_num_requests_running`) unless the scraper offers to read UTF-8 names, as Prometheus does only
since version 3. But `:` needs no UTF-8, and every dashboard and router knows the names with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client.exposition import choose_encoder as choose_by_accept
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

_OPENMETRICS = "application/openmetrics-text"


def choose_encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """The encoder and the content type for an Accept header."""
    try:
        encode, content_type = choose_by_accept(accept)
    except TypeError:  # prometheus_client's, for a version that is no number
        encode, content_type = choose_by_accept("")
    if not content_type.startswith(_OPENMETRICS):
        return encode, content_type
    return (
        partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8, version="1.0.0"),
        f"{_OPENMETRICS}; version=1.0.0; charset=utf-8",
    )
