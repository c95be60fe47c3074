"""Where the adapters are: places on the device and in host memory, loads, evictions, thrash."""

from __future__ import annotations

from panels import (
    BAD,
    WARN,
    Json,
    dashboard,
    graph,
    heatmap,
    query,
    stat,
    table,
    thresholds,
    timeline,
)
from signals import (
    ANNOTATIONS,
    BY_VERSION,
    INSTANCE,
    LINKS,
    OWN,
    SERVER,
    VERSIONED,
    WHOLE_TIME,
    WINDOW,
    per_second,
    quantile,
    quantiles,
    told,
)

LOADS, LOAD_TIME = "lorry_adapter_loads_total", "lorry_adapter_load_seconds"
EVICTIONS, IDLE = "lorry_adapter_evictions_total", "lorry_adapter_eviction_idle_seconds"
RESIDENT, PLACES = "lorry_adapter_resident", "lorry_adapter_places"
SOON = f'{IDLE}_bucket{{le="60.0",{SERVER}}}'
ADAPTERS_CALLS = f'lorry_requests_total{{adapter!~"base|_.*",{SERVER}}}'
FROM_HOST = f'tier="host",{OWN}'
FULL = thresholds((0.9, WARN), (1, BAD))


def taken(tier: str) -> str:
    labels = f'tier="{tier}",{SERVER}'
    return f"(sum({RESIDENT}{{{labels}}}) or vector(0)) / sum({PLACES}{{{labels}}})"


NOW = [
    stat(
        "Device slots taken",
        taken("device"),
        unit="percentunit",
        text="Of --max-loras. Full is fine: the coldest makes room.",
    ),
    stat(
        "Host places taken",
        taken("host"),
        unit="percentunit",
        text="Of --max-cpu-loras. Full is fine unless what leaves comes back.",
    ),
    stat("Loads", per_second(LOADS, OWN), unit="ops", empty="none"),
    stat(
        "Failed loads, last 10 min",
        "sum(adapter_version:lorry_adapter_load_failures:increase10m) or vector(0)",
        unit="none",
        limits=thresholds((0.5, BAD)),
    ),
    stat("Load time, p95", told(quantile(0.95, LOAD_TIME, OWN)), unit="s", empty="no loads"),
    stat(
        "Thrash, last 10 min",
        f"sum(instance:lorry_adapter_thrash:increase10m{{{SERVER}}})",
        unit="none",
        limits=thresholds((5, WARN), (20, BAD)),
        text="Evictions of adapters that had been used within the minute before.",
    ),
]
HELD = [
    graph(
        f"Places: {name}",
        query(f'sum({RESIDENT}{{tier="{tier}",{SERVER}}}) or vector(0)', "taken"),
        query(f'sum({PLACES}{{tier="{tier}",{SERVER}}})', "there are"),
        unit="none",
    )
    for tier, name in (("device", "device slots"), ("host", "host memory"))
]
WHO = [
    timeline(
        "Who is where",
        f"sum by (adapter, version) ({RESIDENT}{{{SERVER}}})",
        VERSIONED,
        {1: ("host", "light-blue"), 2: ("device and host", "green")},
        "A gap: it was on no server. With several servers, choose one above.",
    )
]
COMING = [
    graph(
        "Loads",
        query(per_second(LOADS, OWN, "result"), "{{result}}"),
        unit="ops",
        stack=True,
        colors={"ok": "green", "error": "red"},
    ),
    graph(
        "Loads for each call to an adapter",
        query(f"{per_second(LOADS, OWN)} / (sum (rate({ADAPTERS_CALLS}{WINDOW})) > 0)", "loads"),
        unit="percentunit",
        text="How often a call finds its adapter not there. 0 once all that are in use fit.",
    ),
    graph(
        "Load time",
        *quantiles(LOAD_TIME, OWN),
        unit="s",
        text="Into the engine: read, checked, built and taken in.",
    ),
]
GOING = [
    graph(
        "Evictions by tier",
        query(per_second(EVICTIONS, OWN, "tier"), "{{tier}}"),
        unit="ops",
        text="device: the slot went to another, the copy in host memory stays. host: it is gone "
        "and must be loaded again.",
    ),
    graph(
        "Thrash",
        query(f"sum (rate({SOON}{WINDOW}))", "used within a minute before"),
        query(f"sum (rate({IDLE}_count{{{SERVER}}}{WINDOW}))", "all evictions from host memory"),
        unit="ops",
    ),
    heatmap(
        "How long the evicted had not been used",
        f"sum by (le) (increase({IDLE}_bucket{{{SERVER}}}{WINDOW}))",
        text="Hot at the bottom: more adapters are in use than there are places.",
    ),
]
WORST = [
    table(
        "Most loaded and evicted",
        {
            "loads": (
                f"topk(20, sum by ({BY_VERSION}) (increase({LOADS}{{{OWN}}}{WHOLE_TIME})))",
                "none",
            ),
            "evictions from host": (
                f"sum by ({BY_VERSION}) (increase({EVICTIONS}{{{FROM_HOST}}}{WHOLE_TIME}))",
                "none",
            ),
            "load time p95": (quantile(0.95, LOAD_TIME, OWN, BY_VERSION, WHOLE_TIME), "s"),
        },
        text="Over the whole time shown.",
        link={
            "title": "its own page",
            "url": "/d/lorry-adapter?var-adapter=${__value.text}&${__url_time_range}",
        },
    ),
    table(
        "Failed loads and broken values",
        {
            "failed loads": (f'sum by ({BY_VERSION}) ({LOADS}{{result="error",{SERVER}}})', "none"),
            "broken values": (
                f"sum by ({BY_VERSION}) (lorry_adapter_nonfinite_values{{{SERVER}}})",
                "none",
            ),
        },
        text="Since the server started; broken values of what is resident.",
    ),
]


def build() -> Json:
    return dashboard(
        "lorry-residency",
        "Lorry: residency",
        "Which adapters are where, what comes and goes, and whether the places are enough.",
        rows={
            "Now": (4, NOW),
            "Places": (7, HELD),
            "Adapters": (9, WHO),
            "Coming": (8, COMING),
            "Going": (8, GOING),
            "By adapter": (9, WORST),
        },
        variables=[INSTANCE],
        links=LINKS,
        annotations=ANNOTATIONS,
    )
