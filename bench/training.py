"""Training beside TRL's own script: `python -m bench.training RECIPE`, both in turn.

Prints seconds an update and peak memory, with LoRA and with QLoRA, as medians of several rounds.
The script of TRL gets the same base, examples, rank, batch and settings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from training.data.sets import read_set
from training.recipe import Recipe, load_recipe

QUANTIZATIONS = ("nf4", "none")
ROW = "| {name} | {ours:.2f} | {trl:.2f} | {ratio:.3f} | {our_gib:.2f} | {trl_gib:.2f} |"


@dataclass(frozen=True, slots=True)
class Side:
    """One run: seconds an update, and the peak of its process's memory."""

    seconds: float
    gib: float


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, whose data are chats.")],
    steps: Annotated[int, typer.Option(min=1, help="Updates of each run.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = 3,
) -> None:
    """Compare training with TRL's own script."""
    typer.echo("| | s an update | TRL's script | ratio | peak GiB | TRL's script |")
    typer.echo("|---|---|---|---|---|---|")
    for quantization in QUANTIZATIONS:
        wanted = [f"quantization={quantization}", f"optimization.max_steps={steps}"]
        with tempfile.TemporaryDirectory() as scratch:
            pairs = [
                (
                    run_lorry(recipe, wanted, Path(scratch) / f"lorry-{number}"),
                    run_trl(load_recipe(recipe, wanted), Path(scratch) / f"trl-{number}"),
                )
                for number in range(rounds)
            ]
        ours, trl = zip(*pairs, strict=True)
        typer.echo(
            ROW.format(
                name="QLoRA" if quantization == "nf4" else "LoRA",
                ours=median(side.seconds for side in ours),
                trl=median(side.seconds for side in trl),
                ratio=median(one.seconds / other.seconds for one, other in pairs),
                our_gib=median(side.gib for side in ours),
                trl_gib=median(side.gib for side in trl),
            )
        )


def run_lorry(recipe: Path, wanted: Sequence[str], output: Path) -> Side:
    """`lorry train`, without validation and early checkpoints, which TRL's script has neither."""
    chosen = [*wanted, "data.validation=null", "data.heldout=null", "evaluation.every=100000"]
    command = ["lorry.py", "train", str(recipe), "--json", "--output", str(output)]
    told, gib = _run([*command, *(f"--set={each}" for each in chosen)])
    facts = json.loads(told)["provenance"]
    return Side(facts["train_seconds"] / facts["steps"], gib)


def run_trl(recipe: Recipe, output: Path) -> Side:
    """`trl sft` on the same examples, as prompts and completions."""
    data = output / "data"
    data.mkdir(parents=True)
    examples = read_set(recipe.data.train).examples
    lines = [{"prompt": each.prompt, "completion": each.completion} for each in examples]
    (data / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    chosen, lora = recipe.optimization, recipe.lora
    options = {
        "model_name_or_path": recipe.base,
        "dtype": "bfloat16",
        "dataset_name": data,
        "output_dir": output / "out",
        "use_peft": True,
        "lora_r": lora.rank,
        "lora_alpha": lora.scale_alpha,
        "lora_dropout": lora.dropout,
        "per_device_train_batch_size": chosen.batch_size,
        "gradient_accumulation_steps": chosen.accumulation,
        "learning_rate": chosen.learning_rate,
        "max_steps": chosen.max_steps,
        "max_length": chosen.max_length,
        "warmup_steps": chosen.warmup_steps,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "seed": chosen.seed,
    }
    if recipe.quantization == "nf4":
        options |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_bnb_nested_quant": True,
        }
    command = ["-m", "trl.scripts.sft", "--lora_target_modules", *lora.modules]
    told, gib = _run([*command, *(f"--{key}={value}" for key, value in options.items())])
    found = re.search(r"'train_runtime': '?([\d.]+)", told)
    assert found, told[-2000:]
    return Side(float(found[1]) / (chosen.max_steps or 1), gib)


def _run(arguments: Sequence[str]) -> tuple[str, float]:
    """The standard output of a Python process, and the peak of its memory in GiB."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments[:3])} failed:\n{err.read()[-3000:]}")
        return out.read(), usage.ru_maxrss / 2**20


if __name__ == "__main__":
    typer.run(main)
