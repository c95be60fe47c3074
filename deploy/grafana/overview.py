"""The first page to open: is anything wrong, and with which part?"""

from __future__ import annotations

from panels import BAD, WARN, Json, dashboard, graph, query, stat, table, thresholds
from signals import (
    ANNOTATIONS,
    BY_VERSION,
    CALLS,
    DURATION,
    FIRST_TOKEN,
    INSTANCE,
    LINKS,
    OUTCOMES,
    OWN,
    QUEUE_TIME,
    SERVER,
    TOKEN_GAP,
    WHOLE_TIME,
    failed,
    per_second,
    quantile,
    quantiles,
    told,
)

SLOW = thresholds((1, WARN), (2.5, BAD))  # seconds; the objective's bound is 2.5
FAILING = thresholds((0.01, WARN), (0.05, BAD))  # the alert's bound is 0.05
WAITING = thresholds((5, WARN), (15, BAD))  # seconds; the alert's bound is 15
FULL = thresholds((0.8, WARN), (0.95, BAD))
REJECTED = f'{OWN},outcome="rejected"'
FIRING = 'count(ALERTS{alertname=~"Lorry.*",alertstate="firing"}) or vector(0)'

NOW = [
    stat(
        "Engine",
        f"min(lorry_engine_up{{{SERVER}}})",
        unit="none",
        names={1: ("ready", "green"), 0: ("not ready", "red")},
        empty="no server",
        text="Not ready: starting or dead.",
    ),
    stat("Alerts firing", FIRING, unit="none", limits=thresholds((1, BAD))),
    stat("Calls", per_second(CALLS, OWN), unit="reqps"),
    stat(
        "Failed",
        failed(OWN),
        unit="percentunit",
        limits=FAILING,
        text="Calls that ended in an error of the server or its engine.",
    ),
    stat("First token, p95", told(quantile(0.95, FIRST_TOKEN, OWN)), unit="s", limits=SLOW),
    stat("Generated", per_second("vllm:generation_tokens_total", SERVER), unit="tok/s"),
    stat(
        "Oldest waiting",
        f"max(lorry_oldest_waiting_seconds{{{SERVER}}})",
        unit="s",
        limits=WAITING,
        text="Age of the call that has waited longest for a place, a load or the engine's queue.",
    ),
    stat("KV cache", f"max(vllm:kv_cache_usage_perc{{{SERVER}}})", unit="percentunit", limits=FULL),
]
TRAFFIC = [
    graph(
        "Calls by adapter",
        query(per_second(CALLS, OWN, "adapter"), "{{adapter}}"),
        unit="reqps",
        stack=True,
        text="Ended calls. `base` named no adapter; `_unresolved` named nothing that exists.",
    ),
    graph(
        "Calls by outcome",
        query(per_second(CALLS, OWN, "outcome"), "{{outcome}}"),
        unit="reqps",
        stack=True,
        colors=OUTCOMES,
        text="client_error: 4xx. rejected: 401, 403, 429, 503. aborted: the caller hung up.",
    ),
]
ERRORS = [
    graph(
        "Failed calls by adapter",
        query(failed(OWN, "adapter"), "{{adapter}}"),
        unit="percentunit",
        limits=FAILING,
    ),
    graph(
        "Tokens",
        query(per_second("vllm:prompt_tokens_total", SERVER), "prompt"),
        query(per_second("vllm:prefix_cache_hits_total", SERVER), "prompt, from the cache"),
        query(per_second("vllm:generation_tokens_total", SERVER), "generated"),
        unit="tok/s",
        text="As the engine counts them, while they are made.",
    ),
]
LATENCY = [
    graph(
        "Time to first token",
        *quantiles(FIRST_TOKEN, OWN, exemplar=True),
        unit="s",
        limits=thresholds((2.5, BAD)),
        text="From a call's arrival, loads of its adapter included. A dot is a call: click it for "
        "its trace.",
    ),
    graph("Between two tokens", *quantiles(TOKEN_GAP, OWN, exemplar=True), unit="s"),
]
WHOLE = [
    graph(
        "Whole call",
        *quantiles(DURATION, OWN, exemplar=True),
        unit="s",
        text="First byte in to last byte out.",
    ),
    graph(
        "Queue of the engine",
        *quantiles(QUEUE_TIME, OWN, exemplar=True),
        unit="s",
        text="Waiting in the engine before prefill.",
    ),
]
QUEUE = [
    graph(
        "Calls in flight and waiting",
        query(f"sum(lorry_requests_in_flight{{{SERVER}}})", "in flight"),
        query(f"sum(lorry_requests_waiting{{{SERVER}}}) or vector(0)", "of them waiting"),
        query(f"sum(vllm:num_requests_running{{{SERVER}}})", "sequences in the batch"),
        unit="none",
        text="Waiting: for a place, a load or the engine's queue. A call may be many sequences.",
    ),
    graph(
        "Oldest waiting call",
        query(f"lorry_oldest_waiting_seconds{{{SERVER}}}", "{{instance}}"),
        unit="s",
        limits=WAITING,
    ),
    graph(
        "Turned away",
        query(per_second("vllm:admission_rejections_total", SERVER, "reason"), "queue: {{reason}}"),
        query(f"{per_second(CALLS, REJECTED)} or vector(0)", "all that were rejected"),
        unit="reqps",
        text="By the engine's queue limit, and in all (401, 403, 429, 503).",
    ),
]
CACHE = [
    graph(
        "KV cache",
        query(f"vllm:kv_cache_usage_perc{{{SERVER}}}", "{{instance}}"),
        unit="percentunit",
        limits=FULL,
        most=1,
    ),
    graph(
        "Prompt tokens found in the prefix cache",
        query(
            f"{per_second('vllm:prefix_cache_hits_total', SERVER)} / "
            f"({per_second('vllm:prefix_cache_queries_total', SERVER)} > 0)",
            "found",
        ),
        unit="percentunit",
        most=1,
    ),
    graph(
        "Preemptions",
        query(per_second("vllm:num_preemptions_total", SERVER, "instance"), "{{instance}}"),
        unit="ops",
        text="Sequences put back because the KV cache was full; each is computed again.",
    ),
]
ADAPTERS = [
    table(
        "Busiest adapters",
        {
            "calls/s": (f"topk(20, {per_second(CALLS, OWN, BY_VERSION, WHOLE_TIME)})", "reqps"),
            "failed": (failed(OWN, BY_VERSION, WHOLE_TIME), "percentunit"),
            "first token p95": (quantile(0.95, FIRST_TOKEN, OWN, BY_VERSION, WHOLE_TIME), "s"),
            "token gap p95": (quantile(0.95, TOKEN_GAP, OWN, BY_VERSION, WHOLE_TIME), "s"),
        },
        text="Over the whole time shown. Click an adapter for its own page.",
        link={
            "title": "its own page",
            "url": "/d/lorry-adapter?var-adapter=${__value.text}&${instance:queryparam}"
            "&${__url_time_range}",
        },
    )
]


def build() -> Json:
    return dashboard(
        "lorry-overview",
        "Lorry: overview",
        "Rate, errors, latency, queue and cache of the server as a whole.",
        rows={
            "Now": (4, NOW),
            "Traffic": (8, TRAFFIC),
            "Errors and tokens": (8, ERRORS),
            "Latency": (8, LATENCY),
            "Whole calls and the queue": (8, WHOLE),
            "Waiting": (8, QUEUE),
            "KV cache": (7, CACHE),
            "Adapters": (9, ADAPTERS),
        },
        variables=[INSTANCE],
        links=LINKS,
        annotations=ANNOTATIONS,
    )
