"""The message of a 404 for an unknown path: names the path that a wrong base URL meant."""

from __future__ import annotations

from server.paths import INFERENCE_PATHS, MODELS

_PATHS = frozenset(INFERENCE_PATHS) | {MODELS}
_SHOWN_CHARACTERS = 128
# What OpenAI's and vLLM's servers have and this one has not.
_NOT_SERVED = {
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderations",
    "/v1/audio": "audio",
    "/v1/images": "images",
    "/v1/rerank": "reranking",
    "/v1/score": "scores",
}


def describe(path: str) -> str:
    """The message of the 404: what is not there, and what the caller may have meant."""
    shown = path[:_SHOWN_CHARACTERS]
    meant = _meant(path)
    for prefix, what in _NOT_SERVED.items():
        if meant == prefix or meant.startswith(f"{prefix}/"):
            return (
                f"There is nothing at {shown}: this server answers with text and has no {what}. "
                f"Point your client's {what} at another server."
            )
    if meant in _PATHS:
        return (
            f"There is nothing at {shown}. Did you mean {meant}? The base URL of OpenAI's clients "
            "ends with /v1, that of Anthropic's without it."
        )
    return f"There is nothing at {shown}. GET {MODELS} lists the models, /openapi.json all paths."


def _meant(path: str) -> str:
    """The path with one /v1 and no slash at its end: what a base URL makes wrong."""
    bare = path.rstrip("/")
    while bare.startswith("/v1/v1/"):
        bare = bare.removeprefix("/v1")
    return bare if bare in _PATHS or bare.startswith("/v1/") else f"/v1{bare}"
