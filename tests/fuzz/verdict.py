"""From the record of a run to its failures, and the report that a person reads."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any

LIVEZ_SECONDS = 0.25
GROWTH = 1.15
SPARE_DESCRIPTORS = 8  # of pools that open when they are first needed
Record = dict[str, Any]


def failures(record: Record) -> list[str]:
    """One line for each; none means that the run passed."""
    found = [f"{each['name']}: {each['fault']}" for each in record["faults"]]
    found += [
        f"/livez took {each['seconds']:.2f} s beside {each['name']}, in each repetition too"
        for each in record["stalls"]
        if each["confirmed"]
    ]
    found += [f"an ordinary call: {each}" for each in record["ordinary"]["wrong"]]
    found += [f"{each} has ended" for each in record["ended"]]
    for name, (before, after) in record["memory_mib"].items():
        if before and after > before * GROWTH:
            found.append(f"{name} grew from {before} to {after} MiB")
    for name, (before, after) in record["descriptors"].items():
        if after > before + SPARE_DESCRIPTORS:
            found.append(f"{name} held {before} descriptors before, {after} after")
    if not record["ordinary"]["calls"] or not record["livez"]["probes"]:
        found.append("nothing was measured")
    return found


def livez(probes: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the watcher's probes, in seconds."""
    took = [each["took"] for each in probes]
    if len(took) < 2:
        return {"probes": len(took)}
    hundredths = quantiles(took, n=100)
    worst = max(probes, key=lambda each: each["took"])
    return {
        "probes": len(took),
        "p50": round(median(took), 4),
        "p99": round(hundredths[98], 4),
        "worst": round(worst["took"], 4),
        "worst_without_a_core": round(worst["no_core"], 4),
        "above_limit": sum(each > LIVEZ_SECONDS for each in took),
        "not_200": sum(each["status"] != 200 for each in probes),
    }


def report(record: Record) -> str:
    lines = [
        f"seed {record['seed']}, {record['seconds']} s, "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(record["cases"].items())),
        "answers: "
        + ", ".join(f"{n} x {status}" for status, n in sorted(record["statuses"].items())),
        f"finished answers held against their grammar: {record['checked']}",
        "livez: " + ", ".join(f"{key} {value}" for key, value in record["livez"].items()),
        "memory, MiB (before, after): " + _pairs(record["memory_mib"]),
        "descriptors (before, after): " + _pairs(record["descriptors"]),
        "threads (before, after): " + _pairs(record["threads"]),
        "ordinary calls: {calls}, refused with 503: {refused}, longest {longest} s".format(
            **record["ordinary"]
        ),
    ]
    for each in record["stalls"]:
        word = "repeats" if each["confirmed"] else "does not repeat"
        lines.append(
            f"stall of {each['seconds']:.2f} s (no core for {each['no_core']:.2f} s), {word}: "
            f"{each['name']} {each['title'][:80]}"
        )
    lines += [f"known: {count} x {name}" for name, count in record["known"].items()]
    found = failures(record)
    lines += [f"FAILED {each}" for each in found]
    lines.append(f"{'failed' if found else 'passed'}: {len(found)} failures")
    return "\n".join(lines) + "\n"


def _pairs(values: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {before} {after}" for name, (before, after) in values.items()) or "-"
