"""The variables that vLLM reads, as the settings want them."""

from __future__ import annotations

import os
from unittest import mock

import pytest

from server.engine.environment import prepare
from server.settings import Settings

# By modules when they are imported, in the fork server too.
_SET_BY_EVERY_IMPORT = (
    "AITER_SITUV2_A4W4",
    "LD_LIBRARY_PATH",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TILELANG_CLEANUP_TEMP_FILES",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TRITON_CACHE_AUTOTUNING",
)


@pytest.mark.parametrize(("backend", "strict"), [("guidance", "0"), ("xgrammar", None)])
def test_forced_tool_calls_are_written_for_the_backend(backend, strict):
    environ: dict[str, str] = {}
    prepare(Settings(model="base", grammar_backend=backend), environ)
    assert environ.get("VLLM_ENFORCE_STRICT_TOOL_CALLING") == strict


def test_what_the_settings_hold_is_not_in_the_environment_any_more():
    environ = {"LORRY_CATALOG": "postgresql://u:p@h/n", "LORRY_ADMIN_TOKEN": "t" * 16}
    prepare(Settings(model="base"), environ)
    assert environ.keys().isdisjoint({"LORRY_CATALOG", "LORRY_ADMIN_TOKEN"})


@pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn
def test_the_fork_server_starts_with_what_vllm_sets_for_its_engine():
    """What vLLM sets later reaches the engine too, but not what was read while torch was imported.

    None of the names below is: a new one may be.
    """
    environ = dict(os.environ)
    prepare(Settings(model="base"), environ)
    with mock.patch.dict(os.environ, environ, clear=True):
        from vllm.config import VllmConfig

        VllmConfig()
        changed = {name for name, value in os.environ.items() if environ.get(name) != value}
    assert changed <= {
        "LOCAL_WORLD_SIZE",
        "NUMEXPR_MAX_THREADS",
        "VLLM_DISABLE_SHARED_EXPERTS_STREAM",
        "VLLM_SSM_CONV_STATE_LAYOUT",
        "VLLM_WORKER_MULTIPROC_METHOD",
        *_SET_BY_EVERY_IMPORT,
    }
