"""Sets the environment variables that vLLM reads, before vLLM is imported.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import util
from pathlib import Path

from server.kernels import PORTABLE_VARIABLE
from server.kernels.watchdog import SERVER_VARIABLE
from server.preflight import is_cpu_build
from server.settings import Settings

# Each would let a request bypass our checks, or open an endpoint that must stay closed.
_FORBIDDEN = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_API_KEY",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",
    "VLLM_ENABLE_RESPONSES_API_STORE",
    "VLLM_LORA_RESOLVER_CACHE_DIR",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
)
# An allow-list without vLLM's LoRA resolvers (path traversal, hub downloads).
_PLUGINS = ("bitsandbytes", "lorry_kernels")


def prepare(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set vLLM's variables; the operator's own values stay, except unsafe ones."""
    for name in _FORBIDDEN:
        environ.pop(name, None)
    chosen = [name for name in environ.get("VLLM_PLUGINS", "").split(",") if name]
    environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*chosen, *_PLUGINS]))
    environ[SERVER_VARIABLE] = str(os.getpid())
    for name in ("LORRY_ADMIN_TOKEN", "LORRY_API_KEY"):  # not for the engine's process
        environ.pop(name, None)

    environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about tuning
    environ.setdefault("VLLM_CACHE_ROOT", str((settings.cache / "vllm").resolve()))
    environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if "hf" not in settings.admin_source_schemes:
        environ.setdefault("HF_HUB_OFFLINE", "1")  # the base is on this machine now
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # torch's and vLLM's, at import
    # vLLM's defaults allow 16,384 answers to each of 1,024 prompts in one call.
    environ.setdefault("VLLM_MAX_N_SEQUENCES", "128")
    environ.setdefault("VLLM_MAX_COMPLETION_PROMPTS", "128")
    # The second model runner separates adapters in another way, which is not tested here.
    environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if settings.grammar_backend == "guidance":
        # vLLM's strict tool calling writes structural tags that only xgrammar compiles. Without it
        # a forced call is a JSON schema.
        environ["VLLM_ENFORCE_STRICT_TOOL_CALLING"] = "0"
    if is_cpu_build():
        _prepare_cpu(settings, environ)


def _prepare_cpu(settings: Settings, environ: MutableMapping[str, str]) -> None:
    # The worker runs inside the engine process: one process and one import fewer, and no core spins
    # on a queue. vLLM then leaves the thread settings to us.
    environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Makes vLLM report the counts of server/kernels/slots.py, which detect broken adapters.
    environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    environ[PORTABLE_VARIABLE] = str(int(settings.portable_kernels))
    if settings.threads:
        environ["OMP_NUM_THREADS"] = str(settings.threads)
    environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    # OpenMP threads spin while they wait for each other. With the default, a stream beside a busy
    # process gets 1/26 of its tokens; with 0, alone, only 2/3 (docs/log/server.md).
    environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Before the fork server starts, which hands them on to the engine: what vLLM sets for an engine
    # after its own import, and what is read while torch is imported.
    environ["TORCHINDUCTOR_CPP_DYNAMIC_THREADS"] = "1"
    if libraries := _missing_libraries(environ.get("LD_PRELOAD", "")):
        environ["LD_PRELOAD"] = libraries


def _missing_libraries(preloaded: str) -> str:
    """LD_PRELOAD as vLLM sets it (`CpuPlatform.check_and_update_config`): OpenMP, an allocator."""
    first = [preloaded] if preloaded else []
    if not any(name in preloaded for name in ("libgomp", "libomp", "libiomp")):
        torch = _folder("torch")
        found = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")]
        first += map(str, found[:1])
    if "libtcmalloc" not in preloaded:
        libs = _folder("vllm") / "libs"
        found = [*libs.glob("libtcmalloc_minimal*.so*"), *libs.glob("libtcmalloc.so*")]
        first = [*map(str, found[:1]), *first]
    return ":".join(first)


def _folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = util.find_spec(package)
    return Path(str(spec.origin)).parent if spec else Path()
