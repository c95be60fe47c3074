"""Dashboard "residency": adapters on the device and in host memory, loads, evictions, thrash."""

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
    not_nan,
    per_second,
    quantile,
    quantiles,
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
        text="Share of --max-loras. Full is normal: the least recently used adapter is evicted.",
    ),
    stat(
        "Host places taken",
        taken("host"),
        unit="percentunit",
        text="Share of --max-cpu-loras. Full is normal as long as thrash stays low.",
    ),
    stat("Loads", per_second(LOADS, OWN), unit="ops", empty="none"),
    stat(
        "Failed loads, last 10 min",
        "sum(adapter_version:lorry_adapter_load_failures:increase10m) or vector(0)",
        unit="none",
        limits=thresholds((0.5, BAD)),
    ),
    stat("Load time, p95", not_nan(quantile(0.95, LOAD_TIME, OWN)), unit="s", empty="no loads"),
    stat(
        "Thrash, last 10 min",
        f"sum(instance:lorry_adapter_thrash:increase10m{{{SERVER}}})",
        unit="none",
        limits=thresholds((5, WARN), (20, BAD)),
        text="Evictions of adapters that were used less than a minute before.",
    ),
]
HELD = [
    graph(
        f"Places: {name}",
        query(f'sum({RESIDENT}{{tier="{tier}",{SERVER}}}) or vector(0)', "taken"),
        query(f'sum({PLACES}{{tier="{tier}",{SERVER}}})', "capacity"),
        unit="none",
    )
    for tier, name in (("device", "device slots"), ("host", "host memory"))
]
WHERE = [
    timeline(
        "Residency of each version",
        f"sum by (adapter, version) ({RESIDENT}{{{SERVER}}})",
        VERSIONED,
        {1: ("host", "light-blue"), 2: ("device and host", "green")},
        "A gap means that no server held the version. With several servers, select one above.",
    )
]
LOADING = [
    graph(
        "Loads",
        query(per_second(LOADS, OWN, "result"), "{{result}}"),
        unit="ops",
        stack=True,
        colors={"ok": "green", "error": "red"},
    ),
    graph(
        "Loads per adapter call",
        query(f"{per_second(LOADS, OWN)} / (sum (rate({ADAPTERS_CALLS}{WINDOW})) > 0)", "loads"),
        unit="percentunit",
        text="Share of calls whose adapter is not resident. Near 0 when all adapters in use fit.",
    ),
    graph(
        "Load time",
        *quantiles(LOAD_TIME, OWN),
        unit="s",
        text="Time to read, check and build an adapter and to hand it to the engine.",
    ),
]
EVICTED = [
    graph(
        "Evictions by tier",
        query(per_second(EVICTIONS, OWN, "tier"), "{{tier}}"),
        unit="ops",
        text="device: the slot is reused, the copy in host memory stays. host: the next call must "
        "load the adapter again.",
    ),
    graph(
        "Thrash",
        query(f"sum (rate({SOON}{WINDOW}))", "used less than a minute before"),
        query(f"sum (rate({IDLE}_count{{{SERVER}}}{WINDOW}))", "all evictions from host memory"),
        unit="ops",
    ),
    heatmap(
        "Idle time before eviction",
        f"sum by (le) (increase({IDLE}_bucket{{{SERVER}}}{WINDOW}))",
        text="Evictions at the bottom mean that more adapters are in use than there are places.",
    ),
]
WORST = [
    table(
        "Most loads and evictions",
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
        text="Over the selected time range.",
        link={
            "title": "Open its dashboard",
            "url": "/d/lorry-adapter?var-adapter=${__value.text}&${__url_time_range}",
        },
    ),
    table(
        "Failed loads and invalid values",
        {
            "failed loads": (f'sum by ({BY_VERSION}) ({LOADS}{{result="error",{SERVER}}})', "none"),
            "invalid values": (
                f"sum by ({BY_VERSION}) (lorry_adapter_nonfinite_values{{{SERVER}}})",
                "none",
            ),
        },
        text="Since the server started; invalid values of resident versions only.",
    ),
]


def build() -> Json:
    return dashboard(
        "lorry-residency",
        "Lorry: residency",
        "Resident adapters, their loads and evictions, and whether the places are enough.",
        rows={
            "Now": (4, NOW),
            "Places": (7, HELD),
            "Adapters": (9, WHERE),
            "Loads": (8, LOADING),
            "Evictions": (8, EVICTED),
            "By adapter": (9, WORST),
        },
        variables=[INSTANCE],
        links=LINKS,
        annotations=ANNOTATIONS,
    )
