"""vLLM's Prometheus logger, with `vllm:lora_requests_info` as routers expect it.

vLLM makes one series for each combination of adapters and never drops one. Here there is exactly
one current series, and its adapters have the names that callers use.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

from server.engine.interface import label_of

logger = logging.getLogger("lorry.engine")


class PublicLoraInfo(PrometheusStatLogger):
    gauge_lora_info: Any

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        super().__init__(vllm_config, engine_indexes)
        if self.gauge_lora_info is not None:
            self.gauge_lora_info = CurrentSeries(self.gauge_lora_info)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """As in vLLM, but an exception does not end the output loop and with it the engine."""
        try:
            super().record(*args, **kwargs)
        except Exception:
            logger.exception("vLLM's own metrics could not be counted")


class CurrentSeries:
    """Wraps a gauge; each new set of labels replaces the last one."""

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        self._current: dict[str, str] = {}

    def labels(self, **labels: Any) -> Any:
        public = {name: public_names(str(value)) for name, value in labels.items()}
        if public != self._current:
            self._gauge.clear()
            self._current = public
        return self._gauge.labels(**public)


def public_names(engine_names: str) -> str:
    """NAME@VERSION of each engine-side name, sorted and without duplicates."""
    return ",".join(sorted({label_of(name) for name in engine_names.split(",")}))
