"""The command `lorry estimate MODEL`. What it needs is imported inside it: --help is quick."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli import reported

if TYPE_CHECKING:
    from training.estimate.memory import Estimate, Need, Parts

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)

HEADINGS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "overhead": "overhead",
    "total": "total",
}


@app.command("estimate")
def estimate_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a config.json, or owner/name on the hub: only its config is read.",
        ),
    ],
    rank: Annotated[int, typer.Option(min=1, max=512, help="The adapter's rank.")] = 16,
    target_modules: Annotated[
        str, typer.Option(help="Modules with an adapter, by comma, or all-linear.")
    ] = "q_proj,k_proj,v_proj,qkv_proj,o_proj,gate_proj,up_proj,gate_up_proj,down_proj",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per forward pass.")] = 8,
    length: Annotated[int, typer.Option(min=8, help="Their length, in tokens.")] = 512,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="For a run on this machine's processor, not on a GPU.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Estimate an adapter's size and the memory of training it, before anything is trained."""
    with reported():
        from training.estimate.memory import Plan, estimate
        from training.estimate.shape import name_of, read_config
        from training.qlora import compute_dtype

        targets = [each.strip() for each in target_modules.split(",") if each.strip()]
        plan = Plan(rank, targets, batch_size, length)
        if cpu:
            plan = Plan(rank, targets, batch_size, length, compute_dtype(), gpu=False)
        found = estimate(read_config(model), plan)
    if as_json:
        typer.echo(json.dumps({"model": name_of(model)} | found.as_json(), indent=2))
        return
    typer.echo(_heading(name_of(model), rank, found))
    typer.echo(f"\nGiB at the peak of a step, {batch_size} x {length} tokens:")
    for line in _table(found):
        typer.echo(line)
    typer.echo(f"\n{_describe_logits(found)}")
    if not cpu:
        typer.echo(describe_cards(found))


def _heading(name: str, rank: int, found: "Estimate") -> str:
    share = found.trainable / (found.parameters + found.trainable)
    return (
        f"{name}: {found.parameters:,} parameters; LoRA of rank {rank}: {found.trainable:,} "
        f"({share:.2%}), {found.adapter_bytes / 1e6:,.1f} MB on disk"
    )


def _table(found: "Estimate") -> list[str]:
    columns = [
        (f"{HEADINGS[method]}{suffix}", parts)
        for method, need in found.needs.items()
        for suffix, parts in (("", need.plain), (" +gc", need.checkpointing))
    ]
    widths = [max(len(heading), 9) for heading, _ in columns]
    lines = ["  ".join([f"{'':12}", *_justify([heading for heading, _ in columns], widths)])]
    for key, label in ROWS.items():
        cells = [_gib(parts, key) for _, parts in columns]
        lines.append("  ".join([f"{label:12}", *_justify(cells, widths)]))
    return [*lines, "+gc: with gradient checkpointing"]


def _justify(cells: list[str], widths: list[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def _gib(parts: "Parts", key: str) -> str:
    return f"{getattr(parts, key) / (1 << 30):,.2f}"


def _describe_logits(found: "Estimate") -> str:
    return (
        "The loss is computed in tiles, as TRL does; a trainer that holds all logits of a batch "
        f"needs {found.all_logits_bytes / (1 << 30):,.2f} GiB more."
    )


def describe_cards(found: "Estimate") -> str:
    """One sentence: the smallest card of 24, 40 and 80 GB for each method."""
    said = [_describe_card(HEADINGS[method], need) for method, need in found.needs.items()]
    return f"{'; '.join(reversed(said))}."


def _describe_card(heading: str, need: "Need") -> str:
    card, only_checkpointing = need.smallest_card()
    if card is None:
        least = need.checkpointing.total / (1 << 30)
        return f"{heading} fits no card of 80 GB: it needs {least:,.0f} GB"
    return f"{heading} fits a card of {card} GB" + (
        " with gradient checkpointing" if only_checkpointing else ""
    )
