"""The environment variables of a server under test, which define "stock" and "tuned".

A server does not inherit the shell's variables for vLLM, llama.cpp, threads or spans: they would
change these definitions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CLEANED = (
    *("VLLM_", "LORRY_", "OTEL_", "OMP_", "GOMP_", "KMP_", "MKL_", "LLAMA_", "GGML_"),
    "LD_PRELOAD",
)


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a server inherits."""
    return {name: value for name, value in environ.items() if not name.startswith(_CLEANED)}


def neutral(cache: Path) -> dict[str, str]:
    """Settings without effect on speed or memory: a cache folder, no network, few logs."""
    return {
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",  # for spans
        "PYTHONPATH": str(ROOT),  # servers run in another folder, so that they read no lorry.toml
    }


def stock() -> dict[str, str]:
    """vLLM's defaults, with the plugin for NF4 but without Lorry's plugin."""
    return {"VLLM_PLUGINS": "bitsandbytes"}


def tuned() -> dict[str, str]:
    """vLLM's defaults, with the process and thread settings of `lorry serve`."""
    return {
        **stock(),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "GOMP_SPINCOUNT": "1000",
        "TOKENIZERS_PARALLELISM": "false",
    }
