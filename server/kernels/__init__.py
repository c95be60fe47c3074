"""What Lorry changes inside vLLM's own processes, as a vLLM plugin (`vllm.general_plugins`).

On a CPU it replaces the LoRA arithmetic, which vLLM 0.32 gets wrong when base and adapter
requests share a batch; on a GPU vLLM's own is right and stays. It also arms the watchdog.
Knows nothing of HTTP, adapter names or versions: vLLM hands it slots and rows.
"""

import logging

LORA_WRAPPER = "server.kernels.lora.SegmentedPunicaWrapper"
KNOWN_VLLM = "0.32."


def register() -> None:
    """Called by vLLM in each of its processes; a second call in one changes nothing."""
    from vllm.platforms import current_platform

    from server.kernels import watchdog

    watchdog.arm()
    if current_platform.is_cpu():
        _replace_lora()


def _replace_lora() -> None:
    import vllm
    from vllm.platforms.cpu import CpuPlatform

    if not vllm.__version__.startswith(KNOWN_VLLM):
        # Not below vLLM's logger: the server keeps that one down to errors.
        logging.getLogger(__name__).warning(
            "vLLM %s is not a version that Lorry's CPU kernels know (%sx), so they stay off. "
            "Before 0.33, vLLM's own LoRA code mixes up the adapters of a batch; at any version, "
            "with it an adapter with non-finite weights can spoil other requests.",
            vllm.__version__,
            KNOWN_VLLM,
        )
        return
    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: LORA_WRAPPER)
