"""vLLM's Prometheus logger, which can't end the engine.

vLLM's `vllm:lora_requests_info` has engine-side names, in one series for each combination that ever
ran. It is taken out: server/residency/routers.py has the one that routers can use.
"""

from __future__ import annotations

import logging
from typing import Any

from prometheus_client import REGISTRY
from vllm.v1.metrics.loggers import PrometheusStatLogger

logger = logging.getLogger("lorry.engine")


class EngineStats(PrometheusStatLogger):
    gauge_lora_info: Any

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        super().__init__(vllm_config, engine_indexes)
        if self.gauge_lora_info is not None:
            REGISTRY.unregister(self.gauge_lora_info)
            self.gauge_lora_info = None  # vLLM then counts nothing for it

    def record(self, *args: Any, **kwargs: Any) -> None:
        """As in vLLM, but an exception does not end the output loop and with it the engine."""
        try:
            super().record(*args, **kwargs)
        except Exception:
            logger.exception("vLLM's own metrics could not be counted")
