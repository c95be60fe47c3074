"""The variables of "stock" and "tuned", and those of the shell that never reach a server."""

from __future__ import annotations

from pathlib import Path

from loadtest.servers.environment import cleaned, stock, tuned
from server.engine.environment import prepare
from server.settings import Settings

# Variables of the server without effect on speed or memory, or for our kernels only.
_OTHER = {"VLLM_LOGGING_LEVEL", "VLLM_CACHE_ROOT", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"}
_OTHER |= {"VLLM_PLUGINS", "VLLM_COMPUTE_NANS_IN_LOGITS", "VLLM_MAX_N_SEQUENCES"}
_OTHER |= {"VLLM_MAX_COMPLETION_PROMPTS", "VLLM_ENFORCE_STRICT_TOOL_CALLING"}
_OTHER |= {"PYTHONWARNINGS", "HF_HUB_DISABLE_TELEMETRY"}
# What vLLM sets by itself for an engine that it spawns.
_OTHER |= {"LD_PRELOAD", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS"}


def test_the_shells_tuning_does_not_reach_a_server():
    shell = {"OMP_NUM_THREADS": "1", "VLLM_PLUGINS": "", "LORRY_THREADS": "1", "PATH": "/bin"}
    assert cleaned(shell) == {"PATH": "/bin"}


def test_the_shells_telemetry_settings_do_not_reach_a_server():
    assert cleaned({"OTEL_SDK_DISABLED": "true", "HOME": "/root"}) == {"HOME": "/root"}


def test_stock_has_the_quantization_plugin_and_nothing_else():
    assert stock() == {"VLLM_PLUGINS": "bitsandbytes"}


def test_tuned_has_every_engine_setting_of_lorry():
    environ: dict[str, str] = {}
    prepare(Settings(model=Path()), environ)
    ours = {name: value for name, value in environ.items() if not name.startswith("LORRY_")}
    assert {name: ours[name] for name in ours.keys() - _OTHER} == {
        name: value for name, value in tuned().items() if name != "VLLM_PLUGINS"
    }
