"""The series by which Gateway API routers find the server that holds an adapter.

A scorer of llm-d or of the Gateway API inference extension compares a request's `model` with the
names in these series exactly. So each version stands here by every name that means it now. All is
derived at a scrape; names come from the catalog, which `refresh` reads beside the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adapters.catalog import AdapterVersion, Alias, Catalog
from adapters.errors import AdapterError
from adapters.names import STABLE
from adapters.sums import is_sum
from server.residency.loading import Resident
from server.residency.occupancy import Occupancy
from server.residency.residency import Residency
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.residency")

MOST_SPELLINGS = 16  # of one version
_READ_SECONDS = 0.5  # a scrape does not wait longer for the catalog


def spell(version: AdapterVersion, aliases: Iterable[Alias]) -> list[str]:
    """The names that mean a version, given the aliases of its name: NAME if `stable` points at it,
    NAME@VERSION, and NAME@ALIAS of each alias that points at it, alone or as a side of a split.

    A sum has its canonical form only: a router can't know the other ways to write it.
    """
    if is_sum(version.label):
        return [version.label]
    pointing = sorted(
        (
            each.alias
            for each in aliases
            if any(target.version == version.version for target in each.targets)
        ),
        key=lambda alias: (alias != STABLE, alias),
    )
    bare = [version.name] if STABLE in pointing else []
    spelt = [*bare, version.label, *(f"{version.name}@{alias}" for alias in pointing)]
    return spelt[:MOST_SPELLINGS]


class RouterSeries(Collector):
    """At most `limit` versions are named; without an engine there is no series."""

    def __init__(self, catalog: Catalog, metrics: Metrics, limit: int, slots: int) -> None:
        self._catalog = catalog
        self._metrics = metrics
        self._limit = limit
        self._slots = slots
        self._engine: tuple[Residency, Occupancy] | None = None
        self._aliases: dict[str, list[Alias]] = {}  # as of the last refresh
        self._reading: asyncio.Task[None] | None = None

    def connect(self, residency: Residency, occupancy: Occupancy) -> None:
        """Report what this engine holds."""
        self._engine = residency, occupancy

    async def refresh(self) -> None:
        """Read what the names mean now; to be awaited before each scrape.

        While the catalog can't be read, or only slowly, names mean what they meant before.
        """
        if self._reading is None or self._reading.done():
            versions = self._versions()
            names = sorted({each.name for each in versions if not is_sum(each.label)})
            if not names:
                return
            self._reading = asyncio.create_task(self._read(names))
        await asyncio.wait({self._reading}, timeout=_READ_SECONDS)

    async def _read(self, names: list[str]) -> None:
        try:
            found = await asyncio.to_thread(self._catalog.list_aliases, *names)
        except AdapterError as error:
            logger.debug("the aliases for routers can't be read: %s", error)
            return
        self._aliases = {name: [] for name in names}
        for alias in found:
            self._aliases[alias.name].append(alias)

    def describe(self) -> Iterable[Metric]:
        return []  # otherwise the registry collects once to learn the names

    def collect(self) -> Iterator[Metric]:
        if self._engine is None:
            return
        yield self._requests_info()
        residency, occupancy = self._engine
        residents = occupancy.loaded()
        yield self._adapter_loaded(residents, residency, occupancy)
        in_slots = sum(map(occupancy.is_in_slot, residents))
        for name, text, number in (
            ("num_gpu_loaded_lora_adapters", "Adapters in the engine's slots.", in_slots),
            ("num_cpu_loaded_lora_adapters", "Adapters in host memory.", len(residents)),
            ("max_gpu_lora_adapters", "Slots for adapters in the engine.", self._slots),
        ):
            family = _gauge(name, text)
            family.add_sample(family.name, {}, number)
            yield family

    def _requests_info(self) -> Metric:
        family = _gauge("lora_requests_info", "Names of the adapters that have requests now.")
        running, waiting = self._metrics.versions_called()
        labels = {
            "max_lora": str(self._slots),
            "running_lora_adapters": self._join(running),
            "waiting_lora_adapters": self._join(waiting),
        }
        # Of several series a router takes the one with the greatest value.
        family.add_sample(family.name, labels, time.time())
        return family

    def _adapter_loaded(
        self, residents: list[Resident], residency: Residency, occupancy: Occupancy
    ) -> Metric:
        family = _gauge("lora_adapter_loaded", "1 for each name of an adapter that is loaded.")

        def rank_use(resident: Resident) -> tuple[bool, bool, float]:
            in_slot = occupancy.is_in_slot(resident)
            return in_slot, resident.users > 0, resident.last_used

        for resident in sorted(residents, key=rank_use, reverse=True)[: self._limit]:
            version = resident.load.version
            labels = {
                "level": "gpu" if occupancy.is_in_slot(resident) else "cpu",
                "pinned": "true" if residency.is_pinned(version.key) else "false",
                "rank": str(version.rank),
            }
            for name in self._spell(version):
                family.add_sample(family.name, {"adapter_name": name} | labels, 1)
        return family

    def _join(self, versions: list[AdapterVersion]) -> str:
        names = {name for version in versions[: self._limit] for name in self._spell(version)}
        return ",".join(sorted(names))

    def _spell(self, version: AdapterVersion) -> list[str]:
        return spell(version, self._aliases.get(version.name, ()))

    def _versions(self) -> list[AdapterVersion]:
        running, waiting = self._metrics.versions_called()
        held = self._engine[1].loaded() if self._engine is not None else []
        return [*running, *waiting, *(each.load.version for each in held)]


def _gauge(name: str, text: str) -> Metric:
    return Metric(f"vllm:{name}", text, "gauge")
