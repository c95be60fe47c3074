"""The environment of each kind of side."""

from __future__ import annotations

import os

from bench.side import prepare_environment
from bench.spec import SideSpec

TUNED = ("OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER")


def prepared(kind: str, home) -> dict[str, str]:
    environ: dict[str, str] = {}
    prepare_environment(SideSpec(kind, max_loras=8), home, environ)
    return environ


def test_ours_and_the_best_base_run_as_the_server_does(home):
    environ = prepared("lorry", home)
    assert "lorry_kernels" in environ["VLLM_PLUGINS"].split(",")
    assert environ["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_stock_has_the_quantization_plugin_and_nothing_set(home):
    environ = prepared("stock", home)
    assert environ["VLLM_PLUGINS"] == "bitsandbytes"
    assert not environ.keys() & set(TUNED)


def test_tuned_stock_differs_from_ours_by_the_plugin_alone(home):
    ours, tuned = prepared("lorry", home), prepared("stock-tuned", home)
    assert tuned["VLLM_PLUGINS"] == "bitsandbytes"
    del ours["VLLM_COMPUTE_NANS_IN_LOGITS"]  # a question for our kernels, and work for vLLM's own
    assert {**ours, "VLLM_PLUGINS": ""} == {**tuned, "VLLM_PLUGINS": ""}


def test_every_side_keeps_its_cache_in_the_folder_of_the_bench(home):
    for kind in ("lorry", "stock", "stock-tuned"):
        assert prepared(kind, home)["VLLM_CACHE_ROOT"] == str(home.cache)
