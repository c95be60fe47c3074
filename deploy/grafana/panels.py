"""Builders for Grafana's dashboard JSON: panels, rows of panels, a dashboard.

Knows Grafana's model and no metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 41  # Grafana 12; later versions migrate it on load
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PALETTE = {"mode": "palette-classic-by-name"}  # an adapter has the same colour on every panel
GOOD, WARN, BAD = "green", "orange", "red"
WIDTH = 24  # columns of Grafana's grid


def query(expr: str, legend: str = "", *, exemplar: bool = False) -> Json:
    return {"expr": expr, "legendFormat": legend, "range": True, "exemplar": exemplar}


def thresholds(*steps: tuple[float, str]) -> Json:
    """`steps` are (value, colour), each from its value up; GOOD below the first."""
    first: Json = {"color": GOOD, "value": None}
    return {
        "mode": "absolute",
        "steps": [first, *({"color": color, "value": value} for value, color in steps)],
    }


def panel(kind: str, title: str, queries: Sequence[Json], text: str, **more: Any) -> Json:
    targets = [
        {"datasource": DATASOURCE, "refId": chr(ord("A") + number), **each}
        for number, each in enumerate(queries)
    ]
    described = {"type": kind, "title": title, "description": text, "datasource": DATASOURCE}
    return described | {"targets": targets} | more


def graph(
    title: str,
    *queries: Json,
    unit: str,
    text: str = "",
    stack: bool = False,
    limits: Json | None = None,
    most: float | None = None,
    colors: Mapping[str, str] | None = None,
) -> Json:
    """Time series; `limits` are drawn as dashed lines."""
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    defaults: Json = {"unit": unit, "min": 0, "color": PALETTE, "custom": custom}
    if limits:
        defaults["thresholds"] = limits
    if most is not None:
        defaults["max"] = most
    legend = {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
    return panel(
        "timeseries",
        title,
        queries,
        text,
        fieldConfig={"defaults": defaults, "overrides": _fixed_colors(colors or {})},
        options={"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        # The base has no version: `base`, not `base@`.
        transformations=[_rename("(.*)@$", "$1"), _rename("(.*)@ (.*)", "$1 $2")],
    )


def stat(
    title: str,
    expr: str,
    *,
    unit: str,
    text: str = "",
    limits: Json | None = None,
    names: Mapping[int, tuple[str, str]] | None = None,
    empty: str = "no calls",
) -> Json:
    """One large number; `names` maps values to a word and a colour."""
    defaults: Json = {
        "unit": unit,
        "noValue": empty,
        "thresholds": limits or thresholds(),
        "mappings": _value_names(names or {}),
    }
    options = {
        "colorMode": "background" if limits or names else "none",
        "graphMode": "none" if names else "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    config = {"defaults": defaults, "overrides": []}
    return panel("stat", title, [query(expr)], text, fieldConfig=config, options=options)


def table(
    title: str,
    columns: Mapping[str, tuple[str, str]],
    *,
    text: str = "",
    link: Json | None = None,
) -> Json:
    """One row per label set; `columns` maps a column's name to (expression, unit)."""
    # Grafana names the value columns `Value #A`, `Value #B`, ..., and a single one `Value`.
    numbered = [f"Value #{chr(ord('A') + n)}" for n in range(len(columns))]
    values = dict(zip(numbered if len(columns) > 1 else ["Value"], columns, strict=True))
    targets = [
        query(expr) | {"format": "table", "instant": True, "range": False}
        for expr, _ in columns.values()
    ]
    overrides: list[Json] = [
        _override(name, {"unit": unit, "decimals": 0 if unit == "none" else 2})
        for name, (_, unit) in columns.items()
    ]
    if link:
        overrides.append(_override("adapter", {"links": [link]}))
    organize = {"renameByName": values, "excludeByName": {"Time": True}}
    return panel(
        "table",
        title,
        targets,
        text,
        fieldConfig={"defaults": {"noValue": "-"}, "overrides": overrides},
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": next(iter(columns)), "desc": True}],
        },
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": organize},
        ],
    )


def timeline(
    title: str, expr: str, legend: str, names: Mapping[int, tuple[str, str]], text: str
) -> Json:
    """State timeline: one lane per series, coloured by value."""
    defaults = {"custom": {"fillOpacity": 80}, "mappings": _value_names(names)}
    return panel(
        "state-timeline",
        title,
        [query(expr, legend)],
        text,
        fieldConfig={"defaults": defaults, "overrides": []},
        options={"mergeValues": True, "showValue": "never", "rowHeight": 0.8},
    )


def heatmap(title: str, expr: str, *, text: str = "") -> Json:
    """Heatmap of a histogram's own buckets over time."""
    options = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 32},
        "yAxis": {"unit": "s"},
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"mode": "single"},
    }
    return panel("heatmap", title, [query(expr, "{{le}}") | {"format": "heatmap"}], text,
                 options=options)  # fmt: skip


def variable(name: str, label: str, values: str, *, many: bool = True) -> Json:
    """Dashboard variable that chooses among a label's values; defaults to All."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": values, "refId": name},
        "definition": values,
        "refresh": 2,  # re-read when the time range changes: adapters come and go
        "sort": 1,
        "multi": many,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]} if many else {},
    }


def dashboard(
    uid: str,
    title: str,
    text: str,
    *,
    rows: Mapping[str, tuple[int, Sequence[Json]]],
    variables: Sequence[Json],
    links: Sequence[Json],
    annotations: Sequence[Json],
) -> Json:
    """`rows` maps a title to (height, panels); the panels of a row share its width."""
    chosen = {"type": "datasource", "name": "datasource", "label": "Prometheus",
              "query": "prometheus", "current": {}}  # fmt: skip
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["lorry"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,  # shared crosshair
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [chosen, *variables]},
        "links": list(links),
        "annotations": {"list": list(annotations)},
        "panels": list(_layout(rows)),
    }


def _layout(rows: Mapping[str, tuple[int, Sequence[Json]]]) -> Iterable[Json]:
    number, y = 1, 0
    for title, (height, panels) in rows.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place,
               "panels": []}  # fmt: skip
        number, y = number + 1, y + 1
        width = WIDTH // len(panels)
        for column, each in enumerate(panels):
            place = {"x": column * width, "y": y, "w": width, "h": height}
            yield {"id": number, "gridPos": place, **each}
            number += 1
        y += height


def _rename(pattern: str, name: str) -> Json:
    return {"id": "renameByRegex", "options": {"regex": pattern, "renamePattern": name}}


def _override(name: str, properties: Json) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _fixed_colors(colors: Mapping[str, str]) -> list[Json]:
    return [
        _override(name, {"color": {"mode": "fixed", "fixedColor": color}})
        for name, color in colors.items()
    ]


def _value_names(names: Mapping[int, tuple[str, str]]) -> list[Json]:
    options = {
        str(value): {"text": word, "color": color, "index": index}
        for index, (value, (word, color)) in enumerate(names.items())
    }
    return [{"type": "value", "options": options}] if names else []
