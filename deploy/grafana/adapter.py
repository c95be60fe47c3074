"""Dashboard "adapter": the versions of an adapter side by side, such as a canary and `stable`."""

from __future__ import annotations

from panels import BAD, Json, dashboard, graph, query, table, thresholds, variable
from signals import (
    ANNOTATIONS,
    BY_VERSION,
    CALLS,
    CHOSEN,
    DECODE_TIME,
    DURATION,
    FIRST_TOKEN,
    INSTANCE,
    LINKS,
    OUTCOMES,
    OWN,
    PREFILL_TIME,
    QUEUE_TIME,
    TOKEN_GAP,
    VERSIONED,
    WHOLE_TIME,
    failed,
    per_second,
    quantile,
    quantiles,
    share,
)

PROMPT, CACHED = "lorry_prompt_tokens_total", "lorry_cached_prompt_tokens_total"
MADE = "lorry_generation_tokens_total"
INFO = f"max by ({BY_VERSION}, digest, rank, base) (lorry_adapter_info{{{CHOSEN}}})"
BUDGET = 0.01  # ratio of slow calls that the objective in recording.yml allows
WINDOWS = ("5m", "1h", "6h", "3d")

VERSIONS = [
    table(
        "Versions",
        {
            "calls/s": (per_second(CALLS, CHOSEN, BY_VERSION, WHOLE_TIME), "reqps"),
            "failed": (failed(CHOSEN, BY_VERSION, WHOLE_TIME), "percentunit"),
            "first token p50": (quantile(0.5, FIRST_TOKEN, CHOSEN, BY_VERSION, WHOLE_TIME), "s"),
            "first token p95": (quantile(0.95, FIRST_TOKEN, CHOSEN, BY_VERSION, WHOLE_TIME), "s"),
            "inter-token p95": (quantile(0.95, TOKEN_GAP, CHOSEN, BY_VERSION, WHOLE_TIME), "s"),
            "tokens/s": (per_second(MADE, CHOSEN, BY_VERSION, WHOLE_TIME), "tok/s"),
        },
        text="Over the selected time range.",
    ),
    table(
        "Resident now",
        {"resident": (INFO, "none")},
        text="The digest of each version, as in the response header x-lorry-adapter-digest.",
    ),
]
TRAFFIC = [
    graph(
        "Calls", query(per_second(CALLS, CHOSEN, BY_VERSION), VERSIONED), unit="reqps", stack=True
    ),
    graph(
        "Share of calls",
        query(
            f"{per_second(CALLS, CHOSEN, BY_VERSION)} / ignoring (adapter, version) group_left () "
            f"({per_second(CALLS, CHOSEN)} > 0)",
            VERSIONED,
        ),
        unit="percentunit",
        stack=True,
        most=1,
        text="Share of the selected calls that each version gets: the traffic split in effect.",
    ),
    graph(
        "Outcomes",
        query(per_second(CALLS, CHOSEN, "outcome"), "{{outcome}}"),
        unit="reqps",
        stack=True,
        colors=OUTCOMES,
    ),
]
ERRORS = [
    graph(
        "Failed",
        query(failed(CHOSEN, BY_VERSION), VERSIONED),
        unit="percentunit",
        limits=thresholds((0.05, BAD)),
        text="Calls that ended in an error of the server or its engine.",
    ),
    graph(
        "Burn rate of the first-token objective (2.5 s)",
        *(
            query(
                f'adapter:lorry_first_token_slow:ratio_rate{window}{{adapter=~"$adapter"}} '
                f"/ {BUDGET}",
                f"{{{{adapter}}}} over {window}",
            )
            for window in WINDOWS
        ),
        unit="none",
        limits=thresholds((6, "orange"), (14.4, BAD)),
        text="At 1 the budget lasts 30 days. An alert fires at 14.4 over 1h or 6 over 6h.",
    ),
]
FIRST = [
    graph(
        "Time to first token",
        *quantiles(FIRST_TOKEN, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
        limits=thresholds((2.5, BAD)),
        text="Loads included. Each dot is a call: click it to open its trace.",
    ),
    graph(
        "Inter-token latency",
        *quantiles(TOKEN_GAP, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
    ),
]
WHOLE = [
    graph(
        "Request duration",
        *quantiles(DURATION, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
    ),
    graph(
        "Engine queue time",
        *quantiles(QUEUE_TIME, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
    ),
]
PHASES = [
    graph(
        "Prefill",
        *quantiles(PREFILL_TIME, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
        text="From the first scheduling of a sequence to its first token. Grows with the prompt.",
    ),
    graph(
        "Decode",
        *quantiles(DECODE_TIME, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
        text="From the first token to the last. Grows with the answer.",
    ),
    graph(
        "Finish reasons",
        query(
            per_second("lorry_finished_sequences_total", CHOSEN, f"{BY_VERSION}, reason"),
            f"{VERSIONED} {{{{reason}}}}",
        ),
        unit="ops",
        stack=True,
        text="Reported by the engine: stop, length, abort, error.",
    ),
]
TOKENS = [
    graph(
        "Tokens generated",
        query(per_second(MADE, CHOSEN, BY_VERSION), VERSIONED),
        unit="tok/s",
        text="Counted when a call ends.",
    ),
    graph("Prompt tokens", query(per_second(PROMPT, CHOSEN, BY_VERSION), VERSIONED), unit="tok/s"),
    graph(
        "Prefix cache hit rate",
        query(
            share(
                per_second(CACHED, CHOSEN, BY_VERSION),
                per_second(PROMPT, CHOSEN, BY_VERSION),
                BY_VERSION,
            ),
            VERSIONED,
        ),
        unit="percentunit",
        most=1,
    ),
]
RESIDENCY = [
    graph(
        "In flight and waiting",
        query(
            f"sum by ({BY_VERSION}) (lorry_requests_in_flight{{{CHOSEN}}})",
            f"{VERSIONED} in flight",
        ),
        query(
            f"sum by ({BY_VERSION}) (lorry_requests_waiting{{{CHOSEN}}})", f"{VERSIONED} waiting"
        ),
        unit="none",
    ),
    graph(
        "Loads and evictions",
        query(
            per_second("lorry_adapter_loads_total", CHOSEN, f"{BY_VERSION}, result"),
            f"{VERSIONED} load {{{{result}}}}",
        ),
        query(
            per_second("lorry_adapter_evictions_total", CHOSEN, f"{BY_VERSION}, tier"),
            f"{VERSIONED} evicted from {{{{tier}}}}",
        ),
        unit="ops",
    ),
    graph(
        "Servers where it is resident",
        query(
            f"sum by ({BY_VERSION}, tier) (lorry_adapter_resident{{{CHOSEN}}})",
            f"{VERSIONED} {{{{tier}}}}",
        ),
        unit="none",
    ),
]


def build() -> Json:
    chosen = [
        INSTANCE,
        variable("adapter", "Adapter", f"label_values(lorry_requests_total{{{OWN}}}, adapter)"),
        variable(
            "version",
            "Version",
            f'label_values(lorry_requests_total{{adapter=~"$adapter",{OWN}}}, version)',
        ),
    ]
    return dashboard(
        "lorry-adapter",
        "Lorry: adapter",
        "Traffic, errors and latency by adapter and version, to compare a canary with `stable`.",
        rows={
            "Versions": (8, VERSIONS),
            "Traffic": (8, TRAFFIC),
            "Errors and the objective": (8, ERRORS),
            "Latency": (9, FIRST),
            "Duration and queue": (9, WHOLE),
            "Phases": (9, PHASES),
            "Tokens": (8, TOKENS),
            "Residency": (8, RESIDENCY),
        },
        variables=chosen,
        links=LINKS,
        annotations=ANNOTATIONS,
    )
