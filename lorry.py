"""The `lorry` command: one Typer app per package, imported when its command runs.

This module stays light: a spawned engine process re-imports `__main__`, and `lorry adapters list`
must not wait for torch.
"""

from __future__ import annotations

import os
import sys

if "LORRY_PARENT_PID" in os.environ:
    # A child process of a server, which imports this module first. The watchdog must run before
    # vLLM loads its plugins: a server killed during its start must leave no engine behind.
    from server import signals
    from server.kernels import watchdog
    from server.telemetry.logs import follow_server

    if watchdog.arm():
        signals.leave_to_server()
        follow_server()
elif sys.argv[1:2] == ["serve"]:
    # Before the slow imports, so that SIGTERM in the first second ends the server with 0.
    from server import signals

    signals.install()

import importlib
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "serve": ("server.cli", "Serve one base model and its adapters over HTTP."),
    "adapters": ("adapters.cli", "Publish, list and verify adapters."),
    "keys": ("adapters.cli.keys", "Make API keys, rotate, block and revoke them."),
    "train": ("training.cli", "Train an adapter from a recipe with QLoRA."),
    "sweep": ("training.sweep.cli", "Train each combination of settings, and say which is best."),
    "evaluate": ("training.evaluation.cli", "Judge an adapter on held-out data, and record it."),
    "data": ("training.cli", "Check training data: forms, tokens, truncation, leaks."),
    "estimate": ("training.estimate.cli", "Estimate an adapter's size and the memory to train it."),
    "merge": ("training.merge.cli", "Merge an adapter into its base: a plain checkpoint."),
    "loadtest": ("loadtest.cli", "Load-test a server, per adapter, with a verdict."),
}


class LazyGroup(TyperGroup):
    """Lists commands without importing them; imports a package when its command runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = typer.main.get_command(importlib.import_module(module).app)
        # The app of a package is the command itself, or a group that contains it.
        return getattr(command, "commands", {}).get(cmd_name, command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """One quantized base model, many LoRA adapters, one server that reports which one answered."""


def main(arguments: Sequence[str] | None = None) -> None:
    app(args=list(arguments) if arguments is not None else None, prog_name="lorry")


if __name__ == "__main__":
    main()
