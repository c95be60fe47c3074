"""torch.compile stays on with LoRA on a processor, and a compiled model is found again.

vLLM turns compilation off, as its own LoRA arithmetic there can't be compiled. Ours is opaque
operators.
"""

from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform

from server.kernels import operators


def install() -> None:
    """Once; vLLM's own methods do their work inside."""
    _compile_beside_lora()
    _load_what_was_compiled()


def _compile_beside_lora() -> None:
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
        _tell_by_operators(vllm_config)

    CpuPlatform.check_and_update_config = classmethod(check_as_without_lora)


def _tell_by_operators(vllm_config: Any) -> None:
    """vLLM takes a saved model for its own when settings and traced sources are the same, of which
    our operators are neither."""
    if isinstance(more := vllm_config.additional_config, dict):
        more["lorry_operators"] = operators.kinds()


def _load_what_was_compiled() -> None:
    """Without it every start compiles again, although vLLM has saved the result.

    vLLM 0.32 finishes loading by a method that only its own backend's functions have
    (`compilation/decorators.py: _try_load_aot_compiled_fn`); a processor uses torch's.
    """
    load: Any = torch.compiler.load_compiled_function
    if load.__module__ == __name__:
        return

    def load_complete(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        compiled = loaded._artifacts.compiled_fn
        if not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = lambda _vllm_config: None
        return loaded

    torch.compiler.load_compiled_function = load_complete
