"""Every setting of `lorry serve`, with its default, bounds and description, in one frozen model.

The command line wins over `LORRY_...` variables, they win over `lorry.toml` (or `--config FILE`),
and the file wins over the defaults here. An unknown key is an error in each of them. The options of
`lorry serve` and docs/configuration.md are generated from this model.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, SecretStr, StringConstraints, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from adapters.models import name_model
from server.errors import SettingsInvalid
from server.kernels.watchdog import SERVER_VARIABLE

ENV_PREFIX = "LORRY_"
DEFAULT_CONFIG = Path("lorry.toml")
# Of the commands that call a server; a server may inherit them.
CLIENT_VARIABLES = frozenset({"LORRY_URL", "LORRY_API_KEY"})
# Without `@` and `:`, which separate the parts of an adapter reference.
_BASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
MIN_TOKEN_LENGTH = 16
# Ranks that vLLM can allocate slots for: vllm.config.lora.LoRAConfig.max_lora_rank. A variable or
# an option is text, which pydantic does not convert to one of these by itself.
MaxLoraRank = Annotated[
    Literal[1, 8, 16, 32, 64, 128, 256, 320, 512],
    BeforeValidator(lambda value: int(value) if str(value).isdecimal() else value),
]


# A path keeps its dots: ./ORG/NAME is never a model of the hub.
Model = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
]

# As a browser sends it: without a path, and without the scheme's own port.
CorsOrigin = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s?#]+)$")]


class Settings(BaseSettings):
    """Everything that can be set on `lorry serve`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    model: Model = Field(
        description="Base model: its folder (config.json and safetensors), or ORG/NAME[@REVISION] "
        "of the Hugging Face hub.",
    )
    served_model_name: str = Field(
        default="",
        description="Name of the base for callers; by default ORG/NAME, or the folder's name.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    store: Path = Field(default=Path(".lorry/store"), description="Folder of published adapters.")
    replica: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,63}$")] = Field(
        default="",
        description="Name of this server among several: x-lorry-replica, and in log and spans.",
    )
    quantization: Literal["bitsandbytes", "none"] = Field(
        default="bitsandbytes", description="NF4 with bitsandbytes, or the checkpoint as it is."
    )
    max_loras: int = Field(default=8, ge=1, le=4096, description="Adapters in one batch.")
    max_cpu_loras: int = Field(
        default=32, ge=1, le=65536, description="Adapters resident in host memory."
    )
    max_sums: int = Field(
        default=4,
        ge=0,
        le=4096,
        description="Sums of adapters resident at once, in at most half of max_cpu_loras; 0: none.",
    )
    max_lora_rank: MaxLoraRank = Field(default=64, description="Largest rank that is served.")
    kv_cache_gib: float = Field(
        default=1.0, gt=0, description="Memory for the KV cache on a processor, GiB."
    )
    threads: int = Field(
        default=0, ge=0, description="Engine threads on a processor; 0 takes every allowed core."
    )
    portable_kernels: bool = Field(
        default=False,
        description="PyTorch's kernels on a processor, to rule out the compiled ones: slower.",
    )
    max_body_bytes: int = Field(
        default=16 * 1024 * 1024, ge=1024, description="Largest request body."
    )
    max_bodies_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="Largest sum of the request bodies that arrive at once.",
    )
    body_seconds: float = Field(
        default=120.0, gt=0, description="Longest time that a request body may take to arrive."
    )
    head_seconds: float = Field(
        default=15.0, gt=0, description="Longest time that a request's head may take to arrive."
    )
    keep_alive_seconds: float = Field(
        default=75.0,
        gt=0,
        description="How long an idle connection stays open; longer than a balancer keeps it.",
    )
    max_connections: int = Field(
        default=0,
        ge=0,
        description=(
            "Open connections; 0 takes what the limit of file descriptors leaves after 256 for "
            "everything else, at most 8192."
        ),
    )
    cors_origins: tuple[CorsOrigin, ...] = Field(
        default=(),
        description="Origins of the web pages that may call the models, such as https://a.example.",
    )
    max_body_objects: int = Field(
        default=16_384, ge=64, description="Objects and lists in a request body."
    )
    max_body_values: int = Field(
        default=262_144, ge=1024, description="Values in a request body, such as token ids."
    )
    max_sequences: int = Field(
        default=32, ge=1, le=16384, description="Answers that one call may ask for: prompts by n."
    )
    grammar_backend: Literal["guidance", "xgrammar"] = Field(
        default="guidance", description="Library that constrains answers to a schema or grammar."
    )
    max_grammar_bytes: int = Field(
        default=128 * 1024, ge=64, description="Largest schema, pattern or other grammar, bytes."
    )
    max_grammar_depth: int = Field(
        default=64, ge=1, le=128, description="Levels that a grammar may nest, in patterns too."
    )
    max_grammar_alternatives: int = Field(
        default=10_000, ge=1, description="Choices, enum values and alternatives in a grammar."
    )
    max_grammar_repeats: int = Field(
        default=100_000, ge=1, description="Largest repetition or length that a grammar names."
    )
    max_grammar_number: int = Field(default=2**64, ge=1, description="Largest number in a schema.")
    max_grammar_seconds: float = Field(
        default=0.5, gt=0, le=60, description="Processor time to compile one grammar, seconds."
    )
    max_grammar_mib: int = Field(
        default=512, ge=16, description="Memory to compile one grammar, MiB."
    )
    admission: Literal["fair", "plain"] = Field(
        default="fair",
        description="Order of calls into the engine: fair by caller and adapter, or as they come.",
    )
    max_queue_calls: int = Field(
        default=1024, ge=1, description="Calls that wait for the engine; more are refused with 429."
    )
    max_queue_tokens: int = Field(
        default=1024 * 1024, ge=1024, description="Prompt tokens of the calls that wait."
    )
    max_wait_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Wait after which a caller has a turn on an adapter, whatever it had before.",
    )
    max_prefill_tokens: int = Field(
        default=512,
        ge=1,
        description="Prompt tokens in the engine without an answer yet; one prompt may be longer.",
    )
    adapter_wait_seconds: float = Field(
        default=30.0, gt=0, description="Longest wait for an adapter to load or for a free place."
    )
    engine_stall_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Silence of the engine after which the server is not ready; more than a step.",
    )
    engine_hang_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Silence of the engine after which it is killed and started again.",
    )
    max_engine_restarts: int = Field(
        default=5,
        ge=0,
        description="Restarts of the engine within engine_restart_minutes; then the server ends.",
    )
    engine_restart_minutes: float = Field(
        default=10.0, gt=0, description="Period in which restarts of the engine are counted."
    )
    drain_seconds: int = Field(
        default=30, ge=0, description="How long running answers may finish after SIGTERM."
    )
    catalog: str = Field(
        default="",
        description="SQLAlchemy URL of a catalog that servers share; by default the store's own.",
    )
    allow_base_mismatch: bool = Field(
        default=False, description="Serve adapters that were published for another base."
    )
    watch: Path | None = Field(
        default=None, description="Folder whose subfolders are published once they are complete."
    )
    require_keys: bool = Field(
        default=False,
        description="Answer no call without an API key, even before there is one.",
    )
    insecure_no_auth: bool = Field(
        default=False,
        description="Listen beyond this machine although there are no keys: all may call all.",
    )
    open_metrics: bool = Field(
        default=False, description="Answer /metrics without a key, for whoever can reach it."
    )
    ssl_certfile: Path | None = Field(
        default=None, description="Certificate chain (PEM): the server speaks HTTPS only."
    )
    ssl_keyfile: Path | None = Field(
        default=None, description="Private key of ssl_certfile (PEM), unless that file holds it."
    )
    admin_token: SecretStr | None = Field(
        default=None,
        min_length=MIN_TOKEN_LENGTH,
        description="The bearer token that opens /admin and the runtime LoRA paths.",
    )
    admin_token_file: Path | None = Field(
        default=None, description="File that holds the admin token."
    )
    admin_source_root: Path | None = Field(
        default=None, description="Local folder below which the admin API may publish."
    )
    admin_source_schemes: tuple[str, ...] = Field(
        default=(),
        description="Address schemes that the admin API may publish from, such as hf, s3 or https.",
    )
    max_upload_bytes: int = Field(
        default=4 * 1024**3, ge=1024, description="Largest adapter that can be uploaded."
    )
    max_metric_adapters: int = Field(
        default=200, ge=1, description="Adapter versions with metric series of their own."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="Format of the log; auto is text on a terminal, else JSON."
    )
    cache: Path = Field(
        default=Path(".lorry/cache"),
        description="What vLLM keeps between starts (model info), and the files of sums.",
    )

    @property
    def base_name(self) -> str:
        return self.served_model_name or name_model(self.model)


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Read all sources; `given` holds the options of the command line (None: not given).

    Raises:
        SettingsInvalid: naming every wrong key and value.
    """
    _check_environment()
    try:
        in_environment = EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise SettingsInvalid(f"settings: {error}: write a list as JSON") from None
    on_command_line = {key: value for key, value in given.items() if value is not None}
    try:
        settings = Settings(**_read_config(config) | in_environment | on_command_line)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise SettingsInvalid(f"settings: {problems}") from None
    return _checked(settings)


def _checked(settings: Settings) -> Settings:
    """Check what no single field can, and read the token's file."""
    if not _BASE_NAME.fullmatch(settings.base_name):
        raise SettingsInvalid(
            f"settings: the base's name {settings.base_name!r} can't be a model's name: "
            "give one with --served-model-name"
        )
    if settings.max_cpu_loras < settings.max_loras:
        raise SettingsInvalid(
            f"settings: max_cpu_loras ({settings.max_cpu_loras}) must be at least max_loras "
            f"({settings.max_loras}): every adapter of a batch is resident"
        )
    if settings.max_bodies_bytes < settings.max_body_bytes:
        raise SettingsInvalid(
            f"settings: max_bodies_bytes ({settings.max_bodies_bytes}) must be at least "
            f"max_body_bytes ({settings.max_body_bytes}): it holds one body at least"
        )
    if settings.engine_hang_seconds < settings.engine_stall_seconds:
        raise SettingsInvalid(
            f"settings: engine_hang_seconds ({settings.engine_hang_seconds:g}) must be at least "
            f"engine_stall_seconds ({settings.engine_stall_seconds:g}): first calls are refused, "
            "then the engine is killed"
        )
    if settings.require_keys and settings.insecure_no_auth:
        raise SettingsInvalid(
            "settings: require_keys and insecure_no_auth exclude each other: give one of them"
        )
    if settings.ssl_keyfile is not None and settings.ssl_certfile is None:
        raise SettingsInvalid("settings: ssl_keyfile needs ssl_certfile")
    if settings.admin_token_file is not None:
        return settings.model_copy(update={"admin_token": _read_token(settings)})
    return settings


def _read_token(settings: Settings) -> SecretStr:
    path = settings.admin_token_file
    assert path is not None
    if settings.admin_token is not None:
        raise SettingsInvalid("settings: give admin_token or admin_token_file, not both")
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"settings: can't read admin_token_file {path}: {error}") from None
    if len(token) < MIN_TOKEN_LENGTH:
        raise SettingsInvalid(
            f"settings: the token in {path} is shorter than {MIN_TOKEN_LENGTH} characters"
        )
    return SecretStr(token)


def _check_environment() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    known |= {SERVER_VARIABLE, *CLIENT_VARIABLES}
    unknown = sorted(k for k in os.environ if k.startswith(ENV_PREFIX) and k not in known)
    if unknown:
        raise SettingsInvalid(
            f"settings: no such variable {', '.join(unknown)} (LORRY_... are settings)"
        )


def _read_config(config: Path | None) -> dict[str, Any]:
    path = config or DEFAULT_CONFIG
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"settings: {path} is not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        if config is None and isinstance(error, FileNotFoundError):
            return {}
        raise SettingsInvalid(f"settings: can't read {path}: {error}") from None


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "missing":
        return f"no {key} given (`lorry serve MODEL`, LORRY_{key.upper()} or lorry.toml)"
    if problem["type"] == "extra_forbidden":
        return f"no such key {key!r}"
    if key == "admin_token":  # its value is never shown
        return f"{key}: {problem['msg']}"
    return f"{key} = {problem.get('input')!r}: {problem['msg']}"


def describe_default(field: FieldInfo) -> str:
    """The default as a user would write it; "" if there is none."""
    if field.is_required() or field.default in (None, "", ()) or field.default is False:
        return ""
    return str(field.default)


def describe_type(field: FieldInfo) -> str:
    """What a value looks like: PATH, NUMBER, or the values to choose from."""
    kinds = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        return "|".join(map(str, kinds))
    for kind, word in ((bool, "true|false"), (int, "NUMBER"), (float, "NUMBER"), (Path, "PATH")):
        if kind in kinds:
            return word
    return "TEXT"
