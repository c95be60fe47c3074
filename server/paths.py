"""The paths of the server, and the scope of an API key that each needs."""

from __future__ import annotations

from adapters.keys import Scope

# The paths of vLLM's app that callers can reach, and their gen_ai.operation.name (our own word
# where the convention has none). Each takes a JSON object with `model`. The app's other paths
# (/invocations, profiling, the LoRA routes) are not served.
INFERENCE_PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/messages/count_tokens": "count_tokens",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}
MODELS = "/v1/models"
METRICS = "/metrics"
ADMIN = "/admin"
COMPATIBLE_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
OPEN_PATHS = frozenset({"/livez", "/readyz"})  # for whoever asks


def is_admin(path: str) -> bool:
    return path == ADMIN or path.startswith(f"{ADMIN}/") or path in COMPATIBLE_PATHS


def is_models(path: str) -> bool:
    return path == MODELS or path.startswith(f"{MODELS}/")


def scope_of(path: str) -> Scope | None:
    """None where a key of any scope will do: /health, /openapi.json, and paths that are not there.

    OPEN_PATHS need no key at all.
    """
    if is_admin(path):
        return "admin"
    if path in INFERENCE_PATHS or is_models(path):
        return "inference"
    return "metrics" if path == METRICS else None
