"""`lorry serve`: the command line of the server, whose options are the fields of `Settings`.

Slow imports wait until the settings and the machine have been checked.
"""

from __future__ import annotations

import inspect
import logging
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from server.errors import SettingsInvalid, StartupError
from server.settings import Settings, describe_default, describe_type
from server.telemetry.logs import FORMAT_VARIABLE, choose_format, configure_logging, start_log

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_EPILOG = (
    "Every option is also a variable LORRY_... and a key of lorry.toml. Exit codes: 2 settings, "
    "3 model, 4 port, 5 store, 6 quantization, 7 platform, 8 engine did not start, 9 engine died."
)
# The model is an argument; every user of the machine could read a token on a command line.
_NO_OPTIONS = frozenset({"model", "admin_token"})


def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="The base: a folder, or ORG/NAME[@REVISION] of the Hugging Face hub."),
    ] = None,
    engine_flags: Annotated[
        list[str] | None, typer.Argument(help="After `--`: any flag of vLLM's engine.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file [lorry.toml].")] = None,
    **options: Any,
) -> None:
    """Serve one base model and its adapters over HTTP."""
    raise typer.Exit(_run(config, {"model": model, **options}, engine_flags or []))


def _as_option(name: str, field: FieldInfo) -> inspect.Parameter:
    """A setting as an option: a flag, a repeatable option, or a text that `Settings` parses."""
    kind: Any = str
    if field.annotation is bool:
        kind = bool
    elif isinstance(field.default, tuple):
        kind = list[str]
    help_, default = str(field.description), describe_default(field)
    option = typer.Option(
        "--" + name.replace("_", "-"),
        help=f"{help_} [{default}]" if default else help_,
        metavar=None if kind is bool else describe_type(field),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _take_options_from_settings() -> None:
    signature = inspect.signature(serve, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        _as_option(name, field)
        for name, field in Settings.model_fields.items()
        if name not in _NO_OPTIONS
    ]
    arguments, rest = own[:2], own[2:]
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in rest]
    serve.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*arguments, *options, *keywords]
    )


class ServeCommand(TyperCommand):
    """Reports a wrong option in the log's form, too."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **more: Any) -> Any:
        form = next((b for a, b in pairwise(args) if a == "--log-format"), None)
        try:
            return super().make_context(info_name, args, *rest, **more)
        except Exception as error:
            words = getattr(error, "format_message", None)  # of a UsageError, which typer hides
            if words is None or choose_format(form or _asked_format()) == "text":
                raise
            _report(SettingsInvalid(words()), "json")
            raise typer.Exit(SettingsInvalid.exit_code) from None


_take_options_from_settings()
app.command(epilog=_EPILOG, cls=ServeCommand)(serve)


def _run(config: Path | None, given: dict[str, Any], engine_flags: list[str]) -> int:
    from contextlib import closing

    from adapters import hub
    from server import preflight
    from server.engine import environment, forkserver
    from server.engine.arguments import check_extra
    from server.settings import load_settings

    form = given.get("log_format") or _asked_format()
    try:
        settings = load_settings(config, **given)
        form = settings.log_format
        check_extra(engine_flags)
        preflight.check(settings)
        if preflight.is_fetched(settings):
            preflight.bind(settings.host, settings.port).close()  # not in use; the model first
            start_log(form)
            settings = preflight.fetch_model(settings, _say)
        with (
            closing(preflight.bind(settings.host, settings.port)) as listener,
            closing(preflight.open_catalog(settings.store, settings.catalog)) as catalog,
        ):
            preflight.check_exposure(settings, listener, catalog)
            start_log(form)
            environment.prepare(settings)
            hub.obey_environment()
            forkserver.start()
            # Imported late: it takes seconds.
            from server.serve import serve as run

            return run(settings, engine_flags, listener, catalog)
    except StartupError as error:
        _report(error, form)
        return error.exit_code


def _say(line: str) -> None:
    typer.echo(f"lorry: {line}", err=True)


def _asked_format() -> str:
    """The log's format, as far as it is known without valid settings."""
    return os.environ.get(FORMAT_VARIABLE) or "auto"


def _report(error: StartupError, form: str) -> None:
    if choose_format(form) == "text":
        typer.echo(f"error: {error}", err=True)
        return
    if not logging.getLogger().handlers:
        configure_logging("json")
    fields = {"exit_code": error.exit_code}
    logging.getLogger("lorry.cli").error("%s", error, extra={"fields": fields})
