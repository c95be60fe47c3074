"""The adapters' data sets as chat JSONL: train, validation and held-out for each adapter.

Run it as `python -m training.shop --out DIR`. The same seed gives the same bytes.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from training.shop.answers import message_reply, order_json, order_sql
from training.shop.messages import sample_message, write_message
from training.shop.orders import sample_order, write_order
from training.shop.splits import Split

Exchange = tuple[str, str]

SIZES: Final[dict[Split, int]] = {"train": 2400, "validation": 200, "heldout": 200}


def _json_exchange(rng: random.Random, split: Split) -> Exchange:
    order = sample_order(rng, split)
    return write_order(rng, order), order_json(order)


def _sql_exchange(rng: random.Random, split: Split) -> Exchange:
    order = sample_order(rng, split)
    return write_order(rng, order), order_sql(order)


def _reply_exchange(rng: random.Random, split: Split) -> Exchange:
    message = sample_message(rng, split)
    return write_message(rng, message), message_reply(message)


ADAPTERS: Final[dict[str, Callable[[random.Random, Split], Exchange]]] = {
    "orders-json": _json_exchange,
    "orders-sql": _sql_exchange,
    "support-tone": _reply_exchange,
}


def exchanges(adapter: str, split: Split, seed: int = 0) -> Iterator[Exchange]:
    """Yield (prompt, answer) endlessly, without repeating a prompt."""
    rng = random.Random(f"{seed}:{adapter}:{split}")
    seen: set[str] = set()
    while True:
        prompt, answer = ADAPTERS[adapter](rng, split)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, answer


def write_datasets(folder: Path, seed: int = 0) -> list[Path]:
    """Write every adapter's sets into `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for adapter in ADAPTERS:
        for split, size in SIZES.items():
            path = folder / f"{adapter}.{split}.jsonl"
            source = exchanges(adapter, split, seed)
            lines = (_chat_line(*next(source)) for _ in range(size))
            path.write_text("".join(lines), encoding="utf-8")
            files.append(path)
    return files


def _chat_line(prompt: str, answer: str) -> str:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"
