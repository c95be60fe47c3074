"""The command `lorry merge REF OUT`. What it needs is imported inside it: --help is quick."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from training.cli import CatalogOption, JsonOption, StoreOption, reported

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


class Weights(StrEnum):
    """The base's weights that the adapter is added to."""

    FULL = "full"
    NF4 = "nf4"


class Dtype(StrEnum):
    """The type of the merged weights."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


@app.command("merge")
def merge_command(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="NAME, NAME@VERSION, NAME@ALIAS, or the folder of an adapter."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    store: StoreOption = ".lorry/store",
    catalog: CatalogOption = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The unquantized base: a folder, or ORG/NAME[@REVISION] of the hub."
            " [default: the one that the adapter names]",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        Weights | None,
        typer.Option(
            help="Add to the base's weights as NF4 has them, or in full precision."
            " [default: as in training, which is nf4 for QLoRA]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="The type of the merged weights.")] = Dtype.BF16,
    force: Annotated[
        bool, typer.Option("--force", help="Merge into another base than it was trained on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base: a plain checkpoint for transformers, vLLM or llama.cpp."""
    from adapters.cli.options import reported as adapter_errors_reported

    with reported(), adapter_errors_reported():
        import torch

        from adapters.store import parse_place
        from training.merge.merge import Options, check_unused, merge
        from training.merge.source import find_adapter, pair, trained_on, unproven

        check_unused(out)  # before the base is hashed, which takes long
        say = partial(typer.echo, err=True)
        found = pair(find_adapter(ref, parse_place(store), catalog), base, say, force=force)
        if warning := unproven(found):
            typer.echo(f"warning: {warning}", err=True)
        types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        options = Options(into.value if into else trained_on(found), types[dtype.value])
        facts = merge(found, out, options, say)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "provenance": facts}, indent=2))
    else:
        typer.echo(f"merged {facts['merged']['adapter']} into {found.base.name} ({options.into})")
        typer.echo(out)
