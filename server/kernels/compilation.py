"""torch.compile stays on with LoRA on a processor.

vLLM turns it off, as its own LoRA arithmetic there can't be compiled. Ours is opaque operators.
"""

from typing import Any

from vllm.platforms.cpu import CpuPlatform


def install() -> None:
    """Once; vLLM's own method does its work inside."""
    check = CpuPlatform.check_and_update_config.__func__
    if check.__module__ == __name__:
        return

    def check_as_without_lora(platform: Any, vllm_config: Any) -> None:
        # Compilation is all that it decides by the presence of LoRA.
        lora_config, vllm_config.lora_config = vllm_config.lora_config, None
        try:
            check(platform, vllm_config)
        finally:
            vllm_config.lora_config = lora_config

    CpuPlatform.check_and_update_config = classmethod(check_as_without_lora)
