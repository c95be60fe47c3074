"""One adapter, its versions side by side: is the canary as good as what it replaces?"""

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
BUDGET = 0.01  # of the objective in deploy/prometheus/rules/recording.yml
WINDOWS = ("5m", "1h", "6h", "3d")

VERSIONS = [
    table(
        "Versions",
        {
            "calls/s": (per_second(CALLS, CHOSEN, BY_VERSION, WHOLE_TIME), "reqps"),
            "failed": (failed(CHOSEN, BY_VERSION, WHOLE_TIME), "percentunit"),
            "first token p50": (quantile(0.5, FIRST_TOKEN, CHOSEN, BY_VERSION, WHOLE_TIME), "s"),
            "first token p95": (quantile(0.95, FIRST_TOKEN, CHOSEN, BY_VERSION, WHOLE_TIME), "s"),
            "token gap p95": (quantile(0.95, TOKEN_GAP, CHOSEN, BY_VERSION, WHOLE_TIME), "s"),
            "tokens/s": (per_second(MADE, CHOSEN, BY_VERSION, WHOLE_TIME), "tok/s"),
        },
        text="Over the whole time shown.",
    ),
    table(
        "Resident now",
        {"resident": (INFO, "none")},
        text="Which bytes a version is: its digest, as in the answers' x-lorry-adapter-digest.",
    ),
]
TRAFFIC = [
    graph(
        "Calls", query(per_second(CALLS, CHOSEN, BY_VERSION), VERSIONED), unit="reqps", stack=True
    ),
    graph(
        "Share of the calls",
        query(
            f"{per_second(CALLS, CHOSEN, BY_VERSION)} / ignoring (adapter, version) group_left () "
            f"({per_second(CALLS, CHOSEN)} > 0)",
            VERSIONED,
        ),
        unit="percentunit",
        stack=True,
        most=1,
        text="Of what is chosen above: what a split really sends where.",
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
        "First tokens later than 2.5 s, and how fast they use up the budget",
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
        text="1: the month's budget lasts the month. The alerts ask for 14.4 over 1h, 6 over 6h.",
    ),
]
FIRST = [
    graph(
        "Time to first token",
        *quantiles(FIRST_TOKEN, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
        limits=thresholds((2.5, BAD)),
        text="Loads included. A dot is a call: click it for its trace.",
    ),
    graph(
        "Between two tokens",
        *quantiles(TOKEN_GAP, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
    ),
]
WHOLE = [
    graph(
        "Whole call",
        *quantiles(DURATION, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
    ),
    graph(
        "Queue of the engine",
        *quantiles(QUEUE_TIME, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
    ),
]
PHASES = [
    graph(
        "Prefill",
        *quantiles(PREFILL_TIME, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
        text="A sequence's first scheduling to its first token: grows with the prompt.",
    ),
    graph(
        "Decode",
        *quantiles(DECODE_TIME, CHOSEN, BY_VERSION, VERSIONED, exemplar=True),
        unit="s",
        text="First token to last: grows with the answer.",
    ),
    graph(
        "How answers end",
        query(
            per_second("lorry_finished_sequences_total", CHOSEN, f"{BY_VERSION}, reason"),
            f"{VERSIONED} {{{{reason}}}}",
        ),
        unit="ops",
        stack=True,
        text="By the engine: stop, length, abort, error.",
    ),
]
TOKENS = [
    graph(
        "Tokens generated",
        query(per_second(MADE, CHOSEN, BY_VERSION), VERSIONED),
        unit="tok/s",
        text="Of ended calls.",
    ),
    graph("Prompt tokens", query(per_second(PROMPT, CHOSEN, BY_VERSION), VERSIONED), unit="tok/s"),
    graph(
        "Prompt tokens found in the prefix cache",
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
PLACES = [
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
            f"{VERSIONED} off {{{{tier}}}}",
        ),
        unit="ops",
    ),
    graph(
        "Servers that hold it",
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
        "Everything by adapter and version; a canary stands beside the version it may replace.",
        rows={
            "Versions": (8, VERSIONS),
            "Traffic": (8, TRAFFIC),
            "Errors and the objective": (8, ERRORS),
            "Latency": (9, FIRST),
            "Whole calls and the queue": (9, WHOLE),
            "Phases": (9, PHASES),
            "Tokens": (8, TOKENS),
            "Places": (8, PLACES),
        },
        variables=chosen,
        links=LINKS,
        annotations=ANNOTATIONS,
    )
