"""PromQL shared by the dashboards (rates, ratios, quantiles), their links and annotations."""

from __future__ import annotations

from panels import DATASOURCE, Json, query, variable

SERVER = 'instance=~"$instance"'
# For counters by adapter. Series beyond the cap are folded into `_other`; a rate over `_other`
# would count the folded calls twice. An adapter in use always has series of its own.
OWN = f'adapter!="_other",{SERVER}'
CHOSEN = f'adapter=~"$adapter",version=~"$version",{OWN}'
BY_VERSION = "adapter, version"
WINDOW, WHOLE_TIME = "[$__rate_interval]", "[$__range]"

CALLS = "lorry_requests_total"
FIRST_TOKEN = "lorry_time_to_first_token_seconds"
TOKEN_GAP = "lorry_inter_token_latency_seconds"
DURATION = "lorry_request_duration_seconds"
QUEUE_TIME = "lorry_queue_time_seconds"
PREFILL_TIME = "lorry_prefill_time_seconds"
DECODE_TIME = "lorry_decode_time_seconds"

VERSIONED = "{{adapter}}@{{version}}"
QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
OUTCOMES = {
    "ok": "green",
    "client_error": "blue",
    "rejected": "orange",
    "aborted": "purple",
    "error": "red",
}

INSTANCE = variable("instance", "Server", "label_values(lorry_engine_up, instance)")
LINKS: list[Json] = [
    {
        "type": "dashboards",
        "title": "Lorry",
        "tags": ["lorry"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }
]
ANNOTATIONS: list[Json] = [
    {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Lorry.*",alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{adapter}} {{version}} {{instance}}",
        "step": "30s",
    }
]


def per_second(metric: str, labels: str, by: str = "", window: str = WINDOW) -> str:
    return f"{_sum(by)} (rate({metric}{{{labels}}}{window}))"


def share(part: str, whole: str, by: str = "") -> str:
    """Ratio of two rates: 0 where `part` has no series, no value where `whole` is 0."""
    zero = f"0 * {whole}" if by else "vector(0)"
    return f"({part} or {zero}) / ({whole} > 0)"


def failed(labels: str, by: str = "", window: str = WINDOW) -> str:
    """Ratio of calls that ended in an error of the server or its engine."""
    errors = per_second(CALLS, f'{labels},outcome="error"', by, window)
    return share(errors, per_second(CALLS, labels, by, window), by)


def quantile(q: float, metric: str, labels: str, by: str = "", window: str = WINDOW) -> str:
    grouped = ", ".join(filter(None, ("le", by)))
    rates = f"sum by ({grouped}) (rate({metric}_bucket{{{labels}}}{window}))"
    return f"histogram_quantile({q}, {rates})"


def not_nan(expr: str) -> str:
    """Drops NaN, the value of a quantile without observations."""
    return f"{expr} >= 0"


def quantiles(
    metric: str, labels: str, by: str = "", legend: str = "", *, exemplar: bool = False
) -> list[Json]:
    """Queries for p50, p95 and p99. Only the first asks for exemplars: one dot per call."""
    return [
        query(
            quantile(q, metric, labels, by),
            f"{legend} {name}".strip(),
            exemplar=exemplar and name == "p50",
        )
        for name, q in QUANTILES
    ]


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"
