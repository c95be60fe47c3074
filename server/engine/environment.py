"""The process environment that vLLM reads at import: set once, before vLLM is imported.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from server.kernels import PORTABLE_VARIABLE
from server.kernels.watchdog import SERVER_VARIABLE
from server.preflight import is_cpu_build
from server.settings import Settings

# Each would let a request past our checks, or open an endpoint that must stay shut.
_FORBIDDEN = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_API_KEY",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",
    "VLLM_ENABLE_RESPONSES_API_STORE",
    "VLLM_LORA_RESOLVER_CACHE_DIR",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
)
# An allow-list: vLLM's own LoRA resolvers (path traversal, hub downloads) are not on it.
_PLUGINS = ("bitsandbytes", "lorry_kernels")


def prepare(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what vLLM must find; what the operator set stays, unless it opens a hole."""
    for name in _FORBIDDEN:
        environ.pop(name, None)
    chosen = [name for name in environ.get("VLLM_PLUGINS", "").split(",") if name]
    environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*chosen, *_PLUGINS]))
    environ[SERVER_VARIABLE] = str(os.getpid())
    environ.pop("LORRY_ADMIN_TOKEN", None)  # read by now, and nothing for the engine's process

    environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about tuning
    environ.setdefault("VLLM_CACHE_ROOT", str((settings.cache / "vllm").resolve()))
    environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if "hf" not in settings.admin_source_schemes:
        environ.setdefault("HF_HUB_OFFLINE", "1")  # the base is a folder: nothing to ask a hub
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # torch's and vLLM's, at import
    # 16,384 answers to each of 1,024 prompts of one call otherwise
    environ.setdefault("VLLM_MAX_N_SEQUENCES", "128")
    environ.setdefault("VLLM_MAX_COMPLETION_PROMPTS", "128")
    # The second model runner keeps adapter ids apart in another way; only the first is proven.
    environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if is_cpu_build():
        # The worker inside the engine process: one process and one import fewer, and no core
        # lost to spinning on a queue. vLLM then leaves the thread settings to us.
        environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Asks our kernels, which count at no cost (server/kernels/slots.py), for broken adapters.
        environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
        environ[PORTABLE_VARIABLE] = str(int(settings.portable_kernels))
        threads = settings.threads or len(os.sched_getaffinity(0))
        if settings.threads:
            environ["OMP_NUM_THREADS"] = str(threads)
        environ.setdefault("OMP_NUM_THREADS", str(threads))
        # OpenMP threads spin while they wait for each other, by default so long that beside a busy
        # process a stream gets 1/26 of its tokens; with 0, alone, only 2/3 (docs/log/server.md).
        environ.setdefault("GOMP_SPINCOUNT", "1000")
