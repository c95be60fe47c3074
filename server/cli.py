"""`lorry serve`: the command line of the server. Imports nothing slow before it must."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_EPILOG = (
    "Every option is also a variable LORRY_... and a key of lorry.toml. Exit codes: 2 settings, "
    "3 model, 4 port, 5 store, 6 quantization, 7 platform, 8 engine did not start, 9 engine died."
)


@app.command(epilog=_EPILOG)
def serve(
    model: Annotated[Path | None, typer.Argument(help="Folder of the base model.")] = None,
    engine_flags: Annotated[
        list[str] | None, typer.Argument(help="After `--`: any flag of vLLM's engine.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [8000].")] = None,
    store: Annotated[Path | None, typer.Option(help="Published adapters [.lorry/store].")] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="The base's name for callers [the folder's name].")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="bitsandbytes (NF4) or none [bitsandbytes].")
    ] = None,
    max_loras: Annotated[int | None, typer.Option(help="Adapters in one batch [8].")] = None,
    max_cpu_loras: Annotated[int | None, typer.Option(help="Resident adapters [32].")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="Largest rank [64].")] = None,
    drain_seconds: Annotated[
        int | None, typer.Option(help="How long answers may finish after SIGTERM [30].")
    ] = None,
    catalog: Annotated[
        str | None, typer.Option(help="URL of a shared catalog [the store's own].")
    ] = None,
    watch: Annotated[
        Path | None, typer.Option(help="Folder whose subfolders are published as they appear.")
    ] = None,
    allow_base_mismatch: Annotated[
        bool | None, typer.Option("--allow-base-mismatch", help="Serve adapters of other bases.")
    ] = None,
    portable_kernels: Annotated[
        bool | None,
        typer.Option("--portable-kernels", help="PyTorch's kernels, to rule ours out: slower."),
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="File with the token that opens /admin.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="json or text [auto: text on a terminal].")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file [lorry.toml].")] = None,
) -> None:
    """Serve one base model and its adapters over HTTP."""
    given = {
        "model": model,
        "host": host,
        "port": port,
        "store": store,
        "served_model_name": served_model_name,
        "quantization": quantization,
        "max_loras": max_loras,
        "max_cpu_loras": max_cpu_loras,
        "max_lora_rank": max_lora_rank,
        "drain_seconds": drain_seconds,
        "catalog": catalog,
        "watch": watch,
        "allow_base_mismatch": allow_base_mismatch,
        "portable_kernels": portable_kernels,
        "admin_token_file": admin_token_file,
        "log_format": log_format,
    }
    raise typer.Exit(_run(config, given, engine_flags or []))


def _run(config: Path | None, given: dict[str, Any], engine_flags: list[str]) -> int:
    from contextlib import closing

    from server import preflight
    from server.engine.arguments import check_extra
    from server.errors import StartupError
    from server.settings import load_settings

    try:
        settings = load_settings(config, **given)
        check_extra(engine_flags)
        preflight.check(settings)
        with (
            closing(preflight.bind(settings.host, settings.port)) as listener,
            closing(preflight.open_catalog(settings.store, settings.catalog)) as catalog,
        ):
            # Only now: what follows imports for seconds.
            from server.serve import serve as run

            return run(settings, engine_flags, listener, catalog)
    except StartupError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
