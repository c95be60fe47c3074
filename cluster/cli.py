"""`lorry cluster`: several servers behind one endpoint, on Ray.

Ray is imported when a command needs it. Exit codes are those of `lorry serve`; 1: the cluster did
not come up, or does not answer.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from adapters.cli.options import KEY_VARIABLE, TOKEN_VARIABLE
from server.errors import PlatformUnsupported, SettingsInvalid, StartupError

if TYPE_CHECKING:
    from cluster.arguments import ServersArguments
    from server.settings import Settings

app = typer.Typer(
    name="cluster",
    help="Run several servers behind one endpoint, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

T = TypeVar("T")
UrlOption = Annotated[
    str, typer.Option("--url", envvar="LORRY_URL", help="The cluster's endpoint.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="An existing Ray, or `auto`. [default: a new one, here]")
]


@app.command()
def up(
    model: Annotated[
        str | None, typer.Argument(help="The base: a folder, or ORG/NAME[@REVISION].")
    ] = None,
    engine_flags: Annotated[
        list[str] | None, typer.Argument(help="After `--`: any flag of vLLM's engine.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Servers; with --max-replicas, at least.")] = 2,
    max_replicas: Annotated[
        int, typer.Option(help="Servers at most: added while calls wait. [default: --replicas]")
    ] = 0,
    host: Annotated[str, typer.Option(help="Address of the endpoint.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the endpoint.")] = 8000,
    gateways: Annotated[int, typer.Option(help="Endpoints, each on a node of its own.")] = 1,
    replica_cpus: Annotated[
        float | None, typer.Option(help="Processors for each server. [default: an equal share]")
    ] = None,
    replica_gpus: Annotated[float, typer.Option(help="GPUs for each server.")] = 0.0,
    address: AddressOption = None,
    config: Annotated[Path | None, typer.Option(help="Settings file [lorry.toml].")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of `lorry serve`; repeat it."),
    ] = None,
    print_: Annotated[
        bool, typer.Option("--print", help="Print a Serve config file instead, for serve deploy.")
    ] = False,
) -> None:
    """Run a cluster: here, until Ctrl-C; with --address on an existing Ray, where it stays.

    The same command with other settings upgrades a cluster on an existing Ray.
    """
    with _errors():
        from cluster.arguments import GatewayArguments, serve_config, shared_limits
        from server.settings import load_settings

        is_here = address is None and not print_
        given = load_settings(config, model=model, **_parse(settings or []))
        servers = _read_servers(
            given,
            has_threads=is_here or replica_cpus is not None,
            engine_flags=engine_flags or [],
            replicas=replicas,
            max_replicas=max_replicas,
            cpus=_cpus(replica_cpus, replicas, is_here),
            gpus=replica_gpus,
            host="127.0.0.1" if is_here else "",
        )
        endpoint = {"host": host, "port": port, "gateways": gateways}
        gateway = _valid(GatewayArguments, **shared_limits(given), **endpoint)
        if print_:
            typer.echo(serve_config(servers, gateway), nl=False)
            return
        _check_ray()
        if address is None:
            _check(given, host, port)
            _prepare_own_ray(given)
        else:
            _check_exposure(given, host)
        from cluster import deploying

        if address is None:
            raise typer.Exit(deploying.run_here(servers, gateway, say))
        deploying.deploy(servers, gateway, address)
        say(f"ready on {gateway.url}")


@app.command()
def down(address: Annotated[str, typer.Option(help="The Ray that it runs on.")] = "auto") -> None:
    """Drain and remove a cluster that runs on an existing Ray."""
    with _errors():
        _check_ray()
        from cluster import deploying

        deploying.remove(address)


@app.command()
def status(
    url: UrlOption = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the servers of a cluster, and what each does. Sends the key in LORRY_API_KEY, if any."""
    replicas = _ask_status(url)
    if as_json:
        typer.echo(json.dumps({"replicas": replicas}))
        return
    _print_table(replicas)


@app.command("measure")
def measure_(
    model: Annotated[str, typer.Argument(help="The base's name.")],
    url: UrlOption = "http://127.0.0.1:8000",
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Callers at once. [1 and 24]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds by each way.")] = 7,
) -> None:
    """Measure what the gateway costs: calls through it, and to the servers directly, in turn."""
    import asyncio

    import aiohttp

    from cluster.hop import measure

    replicas = [each["url"] for each in _ask_status(url)]
    for count in streams or (1, 24):
        measuring = measure(
            url.rstrip("/"), replicas, model, headers=_key(), streams=count, rounds=rounds
        )
        try:
            cost = asyncio.run(measuring)
        except (aiohttp.ClientError, TimeoutError) as error:
            fail(f"a call failed: {error}")
        typer.echo("\n".join(cost.lines()))


def _key() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE) or os.environ.get(TOKEN_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}


def _ask_status(url: str) -> list[dict[str, Any]]:
    """The servers of the cluster at `url`; ends the command if there is none."""
    import httpx2

    try:
        answer = httpx2.get(f"{url.rstrip('/')}/cluster", headers=_key(), timeout=30)
        body = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        fail(f"no cluster answers at {url}: {error or type(error).__name__}")
    if answer.status_code != 200 or "replicas" not in body:
        said = body.get("error", {}).get("message") if isinstance(body, dict) else None
        fail(f"{url} answers {answer.status_code}: {said or 'it is no cluster'}")
    found: list[dict[str, Any]] = body["replicas"]
    return found


def _print_table(replicas: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("REPLICA", "STATUS", "IN FLIGHT", "WAITING", "CAPACITY", "ADDRESS"):
        table.add_column(column)
    for each in replicas:
        counts = (str(each.get(name, "-")) for name in ("in_flight", "waiting", "capacity"))
        table.add_row(each["name"], each["status"], *counts, each["url"])
    Console(highlight=False).print(table if replicas else "no server takes calls")


def _read_servers(given: Settings, has_threads: bool, **arguments: Any) -> ServersArguments:
    """With `has_threads`, a server has a thread for each of its `cpus`. Raises SettingsInvalid."""
    from cluster.arguments import ServersArguments, ship
    from server.engine.arguments import check_extra

    check_extra(arguments["engine_flags"])
    settings = ship(given)
    if "threads" not in settings and arguments["cpus"] >= 1 and has_threads:
        settings["threads"] = int(arguments["cpus"])
    return _valid(ServersArguments, settings=settings, **arguments)


def _valid(kind: type[T], **arguments: Any) -> T:
    """Raises SettingsInvalid."""
    from pydantic import ValidationError

    try:
        return kind(**arguments)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))} {each['msg']}".strip() for each in error.errors()
        )
        raise SettingsInvalid(f"cluster: {problems}") from None


def _parse(settings: list[str]) -> dict[str, Any]:
    """Raises SettingsInvalid for what is no KEY=VALUE."""
    from cluster.arguments import SET_HERE
    from server.settings import Settings

    found: dict[str, Any] = {}
    for each in settings:
        name, equals, value = each.partition("=")
        if not equals or name not in Settings.model_fields:
            raise SettingsInvalid(f"settings: --set {each!r}: write NAME=VALUE with a setting")
        if name in SET_HERE:
            raise SettingsInvalid(f"settings: {name} can't be set for a cluster")
        try:
            found[name] = json.loads(value) if value[:1] == "[" else value
        except ValueError as error:
            raise SettingsInvalid(f"settings: --set {each!r}: a list is JSON: {error}") from None
    return found


def _cpus(given: float | None, replicas: int, is_here: bool) -> float:
    """Processors that Ray reserves for each server: here an equal share, whole if possible."""
    if given is not None or not is_here:
        return 1.0 if given is None else given
    cores = len(os.sched_getaffinity(0))
    return float(cores // replicas) if cores >= replicas else cores / replicas


def _check_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if util.find_spec("ray") is None:
        raise PlatformUnsupported("Ray is not installed: pip install 'ray[serve]>=2.60'")


def _check(given: Settings, host: str, port: int) -> None:
    """Raises StartupError for what would only show when the servers start."""
    from server import preflight

    preflight.check(given)
    with (
        closing(preflight.bind(host, port)) as listener,
        closing(preflight.open_catalog(given.store, given.catalog)) as catalog,
    ):
        preflight.check_exposure(given, listener, catalog)


def _check_exposure(given: Settings, host: str) -> None:
    """Raises SettingsInvalid for an endpoint that others reach, unless the settings say who may.

    The servers' own check does not see it: they may listen where only their node reaches them.
    """
    from adapters.admin_http import is_loopback

    if not (is_loopback(host) or given.require_keys or given.insecure_no_auth):
        raise SettingsInvalid(
            f"settings: {host} can be reached from other machines: refuse calls without a key "
            "(--set require_keys=true), or let everybody call everything "
            "(--set insecure_no_auth=true)"
        )


def _prepare_own_ray(given: Settings) -> None:
    """Set up a Ray of our own before Ray is imported, which reads these then.

    It listens on all addresses of the machine, so nobody without this token may use it. Its
    processes inherit what does not travel in a Serve config.
    """
    if given.catalog:
        os.environ["LORRY_CATALOG"] = given.catalog
    if given.admin_token is not None:
        os.environ["LORRY_ADMIN_TOKEN"] = given.admin_token.get_secret_value()
        os.environ.pop("LORRY_ADMIN_TOKEN_FILE", None)  # read already; a server takes one of them
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default, 15, is for batches
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # Serve's own log stays in its files
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")


def say(line: str) -> None:
    typer.echo(f"lorry: {line}", err=True)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(exit_code)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except StartupError as error:
        fail(str(error), error.exit_code)
