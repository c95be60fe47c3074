"""The environment of a server under test: what "stock" and "tuned" mean is decided here.

What the caller's shell sets for vLLM, for threads or for spans does not reach a server, or it would
change that meaning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CLEANED = ("VLLM_", "LORRY_", "OTEL_", "OMP_", "GOMP_", "KMP_", "MKL_", "LD_PRELOAD")


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """What a server inherits of the caller's environment."""
    return {name: value for name, value in environ.items() if not name.startswith(_CLEANED)}


def neutral(cache: Path) -> dict[str, str]:
    """Neither speed nor memory: a place to write, no network, quiet."""
    return {
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",  # spans go there
        "PYTHONPATH": str(ROOT),  # servers run in a folder of their own: no lorry.toml is read
    }


def stock() -> dict[str, str]:
    """vLLM as it comes: with the plugin for NF4, but not with Lorry's."""
    return {"VLLM_PLUGINS": "bitsandbytes"}


def tuned() -> dict[str, str]:
    """vLLM as it comes, with the process and thread settings that `lorry serve` gives it."""
    return {
        **stock(),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "GOMP_SPINCOUNT": "1000",
        "TOKENIZERS_PARALLELISM": "false",
    }
