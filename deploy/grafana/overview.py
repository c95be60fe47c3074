"""Dashboard "overview": is anything wrong, and where?"""

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
    not_nan,
    per_second,
    quantile,
    quantiles,
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
        text="Not ready means starting, started again, stalled or dead.",
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
    stat("First token, p95", not_nan(quantile(0.95, FIRST_TOKEN, OWN)), unit="s", limits=SLOW),
    stat("Generated", per_second("vllm:generation_tokens_total", SERVER), unit="tok/s"),
    stat(
        "Oldest waiting",
        f"max(lorry_oldest_waiting_seconds{{{SERVER}}})",
        unit="s",
        limits=WAITING,
        text="Age of the oldest call that waits for its turn, for a load or inside the engine.",
    ),
    stat("KV cache", f"max(vllm:kv_cache_usage_perc{{{SERVER}}})", unit="percentunit", limits=FULL),
]
TRAFFIC = [
    graph(
        "Calls by adapter",
        query(per_second(CALLS, OWN, "adapter"), "{{adapter}}"),
        unit="reqps",
        stack=True,
        text="Ended calls. `base`: the base model. `_unresolved`: an unknown model.",
    ),
    graph(
        "Calls by outcome",
        query(per_second(CALLS, OWN, "outcome"), "{{outcome}}"),
        unit="reqps",
        stack=True,
        colors=OUTCOMES,
        text="client_error: 4xx. rejected: 401, 403, 429, 503. aborted: the caller disconnected.",
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
        text="Counted by the engine as it runs.",
    ),
]
LATENCY = [
    graph(
        "Time to first token",
        *quantiles(FIRST_TOKEN, OWN, exemplar=True),
        unit="s",
        limits=thresholds((2.5, BAD)),
        text="From the arrival of the call, adapter loads included. Each dot is a call: click it "
        "to open its trace.",
    ),
    graph("Inter-token latency", *quantiles(TOKEN_GAP, OWN, exemplar=True), unit="s"),
]
WHOLE = [
    graph(
        "Request duration",
        *quantiles(DURATION, OWN, exemplar=True),
        unit="s",
        text="From the first byte of the request to the last byte of the response.",
    ),
    graph(
        "Queue time",
        *quantiles(QUEUE_TIME, OWN, exemplar=True),
        unit="s",
        text="Before prefill: for the turn, for the adapter and inside the engine.",
    ),
]
QUEUE = [
    graph(
        "Calls in flight and waiting",
        query(f"sum(lorry_requests_in_flight{{{SERVER}}})", "in flight"),
        query(f"sum(lorry_requests_waiting{{{SERVER}}}) or vector(0)", "waiting"),
        query(f"sum(vllm:num_requests_running{{{SERVER}}})", "sequences in the batch"),
        unit="none",
        text="Waiting for the turn, a load or inside the engine. A call has 1 or more sequences.",
    ),
    graph(
        "Oldest waiting call",
        query(f"lorry_oldest_waiting_seconds{{{SERVER}}}", "{{instance}}"),
        unit="s",
        limits=WAITING,
    ),
    graph(
        "Rejected",
        query(per_second("lorry_queue_rejections_total", OWN, "reason"), "queue: {{reason}}"),
        query(f"{per_second(CALLS, REJECTED)} or vector(0)", "all rejected calls"),
        unit="reqps",
        text="Refused because the queue is full, and all rejections (401, 403, 429, 503).",
    ),
]
FAIRNESS = [
    graph(
        "Queue by adapter",
        query(f"sum by (adapter) (lorry_queue_depth{{{SERVER}}}) > 0", "{{adapter}}"),
        unit="none",
        stack=True,
        text="Requests that wait for their turn to enter the engine.",
    ),
    graph(
        "Wait for the turn by adapter",
        query(f"instance_adapter:lorry_queue_wait_seconds:mean5m{{{SERVER}}}", "{{adapter}}"),
        unit="s",
        text="Mean of five minutes. LorryUnfair fires where one waits four times as long as all.",
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
        "Prefix cache hit rate",
        query(
            f"{per_second('vllm:prefix_cache_hits_total', SERVER)} / "
            f"({per_second('vllm:prefix_cache_queries_total', SERVER)} > 0)",
            "hit rate",
        ),
        unit="percentunit",
        most=1,
    ),
    graph(
        "Preemptions",
        query(per_second("vllm:num_preemptions_total", SERVER, "instance"), "{{instance}}"),
        unit="ops",
        text="Sequences preempted because the KV cache was full; their prefill is repeated.",
    ),
]
ADAPTERS = [
    table(
        "Busiest adapters",
        {
            "calls/s": (f"topk(20, {per_second(CALLS, OWN, BY_VERSION, WHOLE_TIME)})", "reqps"),
            "failed": (failed(OWN, BY_VERSION, WHOLE_TIME), "percentunit"),
            "first token p95": (quantile(0.95, FIRST_TOKEN, OWN, BY_VERSION, WHOLE_TIME), "s"),
            "inter-token p95": (quantile(0.95, TOKEN_GAP, OWN, BY_VERSION, WHOLE_TIME), "s"),
        },
        text="Over the selected time range. Click an adapter to open its dashboard.",
        link={
            "title": "Open its dashboard",
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
            "Duration and queue": (8, WHOLE),
            "Waiting": (8, QUEUE),
            "Fairness": (8, FAIRNESS),
            "KV cache": (7, CACHE),
            "Adapters": (9, ADAPTERS),
        },
        variables=[INSTANCE],
        links=LINKS,
        annotations=ANNOTATIONS,
    )
