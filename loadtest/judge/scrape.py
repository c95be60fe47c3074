"""A snapshot of the server's counters that are comparable with the client's records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from loadtest.drive.fetch import MAX_BYTES, fetch
from loadtest.errors import TargetUnfit

REQUESTS = "lorry_requests_total"
PROMPT_TOKENS = "lorry_prompt_tokens_total"
GENERATION_TOKENS = "lorry_generation_tokens_total"
VLLM_REQUESTS = "vllm:request_success_total"
VLLM_GENERATION_TOKENS = "vllm:generation_tokens_total"
PROCESS_START = "process_start_time_seconds"
WANTED = (
    REQUESTS,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    VLLM_REQUESTS,
    VLLM_GENERATION_TOKENS,
    PROCESS_START,
)

Labels = frozenset[tuple[str, str]]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """{series: {labels: value}}, without series that the server lacks."""

    counters: dict[str, dict[Labels, float]] = {}

    def total(self, name: str) -> float:
        return sum(self.counters.get(name, {}).values())

    def growth(self, before: Sample, name: str) -> dict[Labels, float]:
        """Growth of each series of that name; negative after a reset."""
        earlier, now = before.counters.get(name, {}), self.counters.get(name, {})
        return {
            labels: now.get(labels, 0.0) - earlier.get(labels, 0.0)
            for labels in earlier.keys() | now.keys()
        }


async def scrape(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    *,
    max_bytes: int = MAX_BYTES,
) -> Sample:
    """Read GET /metrics.

    Raises:
        TargetUnfit: it can't be reached, is too large, or is not Prometheus text.
    """
    address = f"{url.rstrip('/')}/metrics"
    body = await fetch(session, address, {"accept": "text/plain", **headers}, max_bytes=max_bytes)
    try:
        return read_sample(body.decode())
    except ValueError as error:
        raise TargetUnfit(f"{address} is not Prometheus text: {error}") from None


def read_sample(text: str) -> Sample:
    """The wanted counters from Prometheus text; raises ValueError for other text."""
    counters: dict[str, dict[Labels, float]] = {}
    # Parse the wanted lines only: a server with many adapters has tens of thousands.
    lines = "\n".join(_wanted(text.splitlines()))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            counters.setdefault(sample.name, {})[labels] = float(sample.value)
    return Sample(counters=counters)


def _wanted(lines: Iterable[str]) -> Iterable[str]:
    starts = tuple(f"{name}{end}" for name in WANTED for end in "{ ")
    return (line for line in lines if line.startswith(starts))
