"""Translates our settings to vLLM's arguments, and checks the flags that a user adds."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence

from server.errors import SettingsInvalid
from server.kernels import STAGING
from server.kernels.versions import KNOWN, installed
from server.preflight import is_cpu_build
from server.settings import Settings

logger = logging.getLogger("lorry.engine")

_BYTES_PER_GIB = 1024**3

# Flags that are settings of ours, or that would break a guarantee of the server.
_RESERVED = frozenset(
    {
        "--allow-credentials",
        "--allowed-headers",
        "--allowed-methods",
        "--allowed-origins",
        "--api-key",
        "--api-server-count",
        "--data-parallel-size",
        "--default-mm-loras",
        "--disable-log-stats",
        "--enable-lora",
        "--grpc",
        "--headless",
        "--host",
        "--lora-modules",
        "--lora-target-modules",
        "--max-cpu-loras",
        "--max-lora-rank",
        "--max-loras",
        "--middleware",
        "--model",
        "--otlp-traces-endpoint",
        "--port",
        "--quantization",
        "--root-path",
        "--served-model-name",
        "--shutdown-timeout",
        "--ssl-ca-certs",
        "--ssl-certfile",
        "--ssl-keyfile",
        "--uds",
        "--worker-extension-cls",
    }
)
# On a processor the kernels compute in bf16; in fp16 a broken adapter's values may still overflow.
# On a GPU the kernels are vLLM's own, and one without bf16 needs another type.
_RESERVED_ON_CPU = frozenset({"--dtype", "--lora-dtype"})


def check_extra(extra: Sequence[str]) -> None:
    """Raises SettingsInvalid if `extra` (the arguments after `--`) has a reserved flag."""
    flags = {word.partition("=")[0].replace("_", "-") for word in extra if word.startswith("--")}
    clash = sorted(flags & _reserved())
    if clash:
        raise SettingsInvalid(
            f"{', '.join(clash)} can't be given after `--`: `lorry serve` sets it itself, or it "
            "would break a guarantee (see `lorry serve --help`)"
        )
    _check_backend(extra)


def _check_backend(extra: Sequence[str]) -> None:
    """Raises SettingsInvalid if `extra` chooses vLLM's backend of structured outputs."""
    config = [word.replace("_", "-") for word in extra]
    given = [word for word in config if word.startswith("--structured-outputs-config")]
    if given and any(".backend" in word or '"backend"' in word for word in config):
        raise SettingsInvalid("choose the backend of structured outputs with --grammar-backend")


def build_arguments(settings: Settings, extra: Sequence[str] = ()) -> Namespace:
    """The namespace that vLLM's server would parse from its command line.

    Raises:
        SettingsInvalid: vLLM does not know a flag in `extra`.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from server.engine.moved import make_arg_parser, validate_parsed_serve_args

    check_extra(extra)
    parser = make_arg_parser(FlexibleArgumentParser(prog="lorry serve MODEL --"))
    try:
        arguments = parser.parse_args([*_own_arguments(settings), *extra])
        validate_parsed_serve_args(arguments)
    except (SystemExit, ValueError, TypeError) as error:
        raise SettingsInvalid(f"vLLM does not take {' '.join(extra)}: {error}") from None
    _check_unchanged(arguments, parser.parse_args(_own_arguments(settings)))
    return arguments  # type: ignore[no-any-return]


def _reserved() -> frozenset[str]:
    return _RESERVED | _RESERVED_ON_CPU if is_cpu_build() else _RESERVED


def _check_unchanged(arguments: Namespace, own: Namespace) -> None:
    """Raises SettingsInvalid if a short or other name of a flag changed a reserved one."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in _reserved()]
    changed = [name for name in names if getattr(arguments, name, 0) != getattr(own, name, 0)]
    if changed:
        raise SettingsInvalid(f"{', '.join(sorted(changed))} can't be changed after `--`")


def _own_arguments(settings: Settings) -> list[str]:
    from adapters.checkpoint.base import (
        SERVED_MODULES,  # imports numpy, which `check_extra` does not need
    )

    arguments = [
        *("--model", str(settings.model.resolve())),
        *("--served-model-name", settings.base_name),
        *("--enable-lora", "--max-loras", str(settings.max_loras)),
        *("--max-cpu-loras", str(settings.max_cpu_loras)),
        *("--max-lora-rank", str(settings.max_lora_rank)),
        # Without this vLLM wraps lm_head and the embeddings too, and their LoRA code runs in every
        # step, even for the base (vllm.lora.layers.logits_processor).
        *("--lora-target-modules", *sorted(SERVED_MODULES)),
        # vLLM's choice would be made by the first grammar, for all that follow.
        *("--structured-outputs-config.backend", settings.grammar_backend),
        *("--dtype", "bfloat16"),  # NF4 layers compute in bf16, whatever the model's own type
        # A signal to the whole process group reaches the engine too: it must wait as we do.
        *("--shutdown-timeout", str(settings.drain_seconds)),
        *("--disable-fastapi-docs", "--no-use-tqdm-on-load"),
    ]
    if settings.quantization != "none":
        arguments += ["--quantization", settings.quantization]
    if _can_stage():
        arguments += ["--worker-extension-cls", STAGING]
    if is_cpu_build():
        arguments += ["--kv-cache-memory-bytes", str(int(settings.kv_cache_gib * _BYTES_PER_GIB))]
    return arguments


def _can_stage() -> bool:
    """Whether the installed vLLM can build adapters beside the engine's steps; logs if not."""
    if installed() in KNOWN:
        return True
    logger.warning(
        "vLLM %s is not a version that Lorry knows (%s): running streams wait while an adapter "
        "is loaded",
        installed(),
        KNOWN,
    )
    return False
