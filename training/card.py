"""An adapter's card: README.md with the front matter that model hubs read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"


def write_card(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write the card of a run's adapter into its folder."""
    (folder / CARD).write_text(render_card(provenance), encoding="utf-8")


def render_card(provenance: Mapping[str, Any]) -> str:
    """What the adapter is, how well it did, how to load it, and how it was made."""
    base, recipe = _name_base(provenance["base"]), provenance["recipe"]
    front = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lorry", provenance["method"]],
    }
    place = provenance["base"].get("repo", "path/to/base")
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(provenance))
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {provenance["name"]}

A LoRA adapter for `{base}`, trained with Lorry.

| | |
|---|---|
{rows}

## Use it

```bash
lorry adapters publish . --name {provenance["name"]} --base {place}
```

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

## How it was made

```yaml
{yaml.safe_dump(dict(recipe), sort_keys=False).strip()}
```

`lorry.json` has the digests of base and data, the package versions and the curves.
"""


def _name_base(base: Mapping[str, Any]) -> str:
    """What a hub links to: the base's id, else its name."""
    return str(base.get("repo") or base["name"])


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    lora, train = facts["recipe"]["lora"], facts["data"]["train"]
    rows = [
        ("rank, alpha", f"{lora['rank']}, {lora['alpha']}"),
        ("layers", ", ".join(lora["target_modules"])),
        ("trained on", f"{train['examples']:,} examples, {train['tokens']:,} tokens"),
        ("steps", f"{facts['steps']:,} ({facts['epochs']:g} epochs)"),
        ("training loss", f"{facts['train_loss']:.4f}"),
    ]
    if facts["validation_loss"] is not None:
        kept = f"{facts['validation_loss']:.4f} at step {facts['best_step']}, which was kept"
        rows.append(("validation loss", kept))
    if facts["validation_metric"] is not None:
        rows.append((facts["metric"]["name"], f"{facts['validation_metric']:.3f}"))
    rows += [
        ("time", f"{facts['train_seconds']:,} s on {facts['machine']}"),
        ("date", facts["ended"][:10]),
    ]
    return rows
