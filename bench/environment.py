"""The environment of a side's process: set before anything heavy is imported there.

What the caller's shell sets for vLLM or for threads does not reach a side
(loadtest.environment.cleaned), or it would change what "stock" and "ours" mean.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from bench.model import Home
from bench.spec import SideSpec
from server.engine import environment
from server.settings import Settings

_STOCK_PLUGINS = "bitsandbytes"


def prepare(spec: SideSpec, home: Home, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set this process up for `spec`; the settings themselves are the server's own."""
    # Neither speed nor memory: a place to write, and quiet.
    environ["VLLM_CACHE_ROOT"] = str(home.cache)
    environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    environ["VLLM_NO_USAGE_STATS"] = "1"
    environ["HF_HUB_OFFLINE"] = "1"
    if spec.kind != "stock":
        environment.prepare(Settings(model=home.base), environ)
    if spec.kind != "lorry":
        environ["VLLM_PLUGINS"] = _STOCK_PLUGINS
    if spec.kind != "lorry" or not spec.max_loras:
        environ.pop("VLLM_COMPUTE_NANS_IN_LOGITS", None)  # costs without our kernels
