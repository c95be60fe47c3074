"""Lorry's changes inside vLLM's processes, as a vLLM plugin (`vllm.general_plugins`).

On a CPU it replaces the LoRA arithmetic, which in vLLM 0.32 is wrong when base and adapter requests
share a batch, and the NF4 arithmetic; it keeps torch.compile on beside LoRA. On a GPU vLLM's own
arithmetic stays. Everywhere it arms the watchdog and builds adapters beside the engine's steps.
Knows nothing of HTTP, adapter names or versions: vLLM passes it slots and rows.
"""

import logging
import sys
from functools import cache
from importlib import util

from server.kernels.versions import KNOWN_ON_CPU, installed, patch

LORA_WRAPPER = "server.kernels.lora.PlannedPunicaWrapper"
STAGING = "server.kernels.staging.AdapterStaging"
PORTABLE_VARIABLE = "LORRY_PORTABLE_KERNELS"  # a setting that the engine's process inherits


def register() -> None:
    """vLLM calls this in each of its processes. Idempotent."""
    from vllm.platforms import current_platform

    from server.kernels import watchdog

    watchdog.arm()
    _install_staging()
    if current_platform.is_cpu():
        _install()


@patch("0.32", before="0.34")
def _install_staging() -> None:
    """In the engine's process, which has imported this module by now; no other needs it."""
    if (core := sys.modules.get("vllm.v1.engine.core")) is not None:
        from server.kernels.staging import answer_at_once, stage_adapter

        if not hasattr(core.EngineCore, stage_adapter.__name__):
            core.EngineCore.stage_adapter = stage_adapter
            process = core.EngineCoreProc
            process.process_input_sockets = answer_at_once(process.process_input_sockets)


def _install() -> None:
    if (version := installed()) not in KNOWN_ON_CPU:
        _warn_unknown(version)
        return
    from server.kernels import engine_patches

    engine_patches.install()
    _replace_lora()
    if _has_nf4():
        from server.kernels import nf4

        nf4.install()


@patch("0.32", before="0.33")  # vLLM's own is right since 0.33, where ours would only be faster
def _replace_lora() -> None:
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(_prepare_adapters)


@cache
def _warn_unknown(version: str) -> None:
    # Not a child of vLLM's logger: the server limits that one to errors.
    logging.getLogger(__name__).warning(
        "vLLM %s is not a version that Lorry's CPU kernels know (%s), so they stay off. "
        "Before 0.33, vLLM's own LoRA code mixes up the adapters of a batch; in any version, "
        "an adapter with non-finite weights can then spoil other requests.",
        version,
        KNOWN_ON_CPU,
    )


def _has_nf4() -> bool:
    return util.find_spec("vllm_bnb_plugin") is not None


def _prepare_adapters(platform: object) -> str:
    """vLLM asks for the wrapper only in processes that serve adapters."""
    from server.kernels import engine_patches, slots

    slots.install()
    engine_patches.install_beside_adapters()
    if _has_nf4():
        from server.kernels import nf4

        nf4.install_beside_adapters()
    return LORA_WRAPPER
