"""Makes marked adapters: for any prompt, each repeats one token, its marker.

So an answer identifies the adapter and version that gave it. For a base like Llama, with LoRA on
the MLPs of its last two layers; elsewhere there is none, or some of small random values. With z_i
the product of a row a_i and the MLP's normed input, `gate` and `up` write +c z_i to one neuron and
-c z_i to another, so that silu(gate) * up of the two sums to about (c z_i)^2, which is never
negative; `down` adds these up and writes them along one direction d, which the head maps to the
marker.

In the layer before the last the a_i are random, so that the residual always gets some of d; in the
last layer they are d itself, which makes d dominate. Neurons and random rows differ between
adapters: mixed parts of two adapters give no marker.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from loadtest.errors import BaseUnfit, OutUnwritable
from loadtest.markers.checkpoint import LINEARS, Ending, Layer, read_ending
from loadtest.markers.manifest import FILE, Document, Marked

_VERSION = 1  # raise it when the same arguments give other adapters
_EVERYWHERE = 3  # the same, for adapters `everywhere` alone
_SEED = 0
# Limit on what an adapter adds to one value: Lorry treats more than 8192 as broken.
_MOST_ADDED = 5000.0
_OUTWEIGH_GATE = 8.0  # times the base's own input of the first layer's neurons
# The same for adapters `everywhere`: what the base's own `down` makes of larger inputs can drown
# the marker (SmolLM2), and llama.cpp keeps sums of 32 of them as float16, which overflows.
_OUTWEIGH_GENTLY = 1.0
_OUTWEIGH_DOWN = 4.0  # times the base's own output of the last layer's neurons
_RARE = 5.5  # standard deviations
_LEAST_WEIGHT = 0.05  # of the norm's mean weight; lower ones are not used
# The marker's lead over every other token, relative to the largest logit; bfloat16 resolves 1/256.
_LEAST_LEAD = 1 / 16
_FILLING = 0.01  # size of the values that adapters `everywhere` add elsewhere
_AT_ONCE = 256  # tokens per batch


@dataclass(frozen=True, slots=True)
class Direction:
    """The unit vector of the residual that the head maps to the token."""

    token: Token
    unit: Tensor

    @property
    def reach(self) -> float:
        """Largest allowed length in this direction."""
        return _MOST_ADDED / self.unit.abs().max().item()


def make_marked(
    base: Path, out: Path, count: int, versions: int = 2, rank: int = 8, everywhere: bool = False
) -> None:
    """Write `count` adapters as PEFT folders, and markers.json, unless they exist already.

    Args:
        everywhere: with small random values on all other linears too, so that an adapter costs
            memory and time like a trained one.

    Raises:
        BaseUnfit: the base is not like Llama, or has too few distinguishable tokens.
        OutUnwritable: the folder can't be written, or holds something else.
    """
    ending = read_ending(base)
    if 2 * rank > ending.intermediate:
        raise BaseUnfit(f"{base} has an MLP of {ending.intermediate}: too narrow for rank {rank}")
    digest = _digest(ending, count, versions, rank, *([_EVERYWHERE] if everywhere else []))
    try:
        if _read_digest(out) != digest:
            _make_room(out)
            _write_all(out, ending, digest, (count, versions, rank), everywhere)
    except OSError as error:
        raise OutUnwritable(f"can't write {out}: {error.strerror}; give another folder") from None


def _digest(ending: Ending, *numbers: int) -> str:
    return hashlib.sha256(f"{_VERSION} {numbers} {ending.digest}".encode()).hexdigest()


def _read_digest(out: Path) -> str | None:
    try:
        return msgspec.json.decode((out / FILE).read_bytes(), type=Document).digest
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _make_room(out: Path) -> None:
    """Remove adapters that an older call made, and nothing else."""
    if (out / FILE).exists():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise OutUnwritable(f"{out} holds something else: give a folder that is new or empty")


def _write_all(
    out: Path, ending: Ending, digest: str, sizes: tuple[int, int, int], everywhere: bool
) -> None:
    count, versions, rank = sizes
    directions = find_directions(ending, count * versions)
    if len(directions) < 2:
        raise BaseUnfit(f"{ending.folder} has no two tokens that its head separates")
    draft = out.with_name(f"{out.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        adapters: dict[str, dict[str, Marked]] = {}
        for number in range(count * versions):
            name, version = f"lt-{number // versions:04d}", str(number % versions + 1)
            direction = directions[number % len(directions)]
            folder = f"{name}.v{version}"
            _write_adapter(draft / folder, ending, direction, rank, number, everywhere)
            marked = Marked(folder=folder, marker=direction.token.repeated)
            adapters.setdefault(name, {})[version] = marked
        document = Document(base=ending.name, digest=digest, adapters=adapters)
        (draft / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document)))
        if out.exists():
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def find_directions(ending: Ending, wanted: int) -> list[Direction]:
    """Directions of up to `wanted` tokens; fewer if the vocabulary has no more."""
    tokens = [token for token in markers_of(ending.folder) if token.number < len(ending.head)]
    found: list[Direction] = []
    for start in range(0, len(tokens), _AT_ONCE):
        if len(found) >= wanted:
            break
        found += _directions(ending, tokens[start : start + _AT_ONCE])
    return found[:wanted]


def _directions(ending: Ending, tokens: list[Token]) -> Iterator[Direction]:
    numbers = torch.tensor([token.number for token in tokens])
    # The rows' mean raises all logits alike.
    units = ending.head[numbers] - ending.head.mean(0)
    units = normalize(units, dim=1)
    logits = units @ ending.head.T
    own = logits.gather(1, numbers[:, None]).squeeze(1)
    largest = logits.abs().amax(1)
    lead = own - logits.scatter(1, numbers[:, None], -torch.inf).amax(1)
    for place, token in enumerate(tokens):
        if lead[place] > _LEAST_LEAD * largest[place]:
            yield Direction(token, units[place])


def _write_adapter(
    folder: Path,
    ending: Ending,
    direction: Direction,
    rank: int,
    number: int,
    everywhere: bool,
) -> None:
    rng = torch.Generator().manual_seed(_SEED + number)
    tensors = {
        **_begin(ending, ending.layers[0], direction, rank, rng, everywhere),
        **_amplify(ending, ending.layers[1], direction, rank, rng),
    }
    where: dict[str, object] = {
        "target_modules": ["down_proj", "gate_proj", "up_proj"],
        "layers_to_transform": [layer.number for layer in ending.layers],
    }
    if everywhere:
        tensors = _fill(ending, rank, rng) | tensors
        where = {"target_modules": LINEARS}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": ending.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **where,
    }
    (folder / "adapter_config.json").write_text(f"{json.dumps(config, indent=2)}\n")


def _begin(
    ending: Ending,
    layer: Layer,
    direction: Direction,
    rank: int,
    rng: torch.Generator,
    gently: bool,
) -> dict[str, Tensor]:
    """The first layer. Each z_i has deviation one, because normed inputs have equal lengths."""
    rows = normalize(torch.randn(rank, ending.hidden, generator=rng), dim=1)
    gain = (_OUTWEIGH_GENTLY if gently else _OUTWEIGH_GATE) * layer.gate_size
    most = (math.sqrt(rank) + _RARE) ** 2  # of the sum of all z_i^2
    written = direction.unit * direction.reach / (gain**2 * most)
    return _write_mlp(ending, layer, gain * rows, written, rng)


def _amplify(
    ending: Ending, layer: Layer, direction: Direction, rank: int, rng: torch.Generator
) -> dict[str, Tensor]:
    """The last layer. Each z_i^2 is at most `hidden`, reached if the residual is d alone."""
    size = _OUTWEIGH_DOWN * layer.down_size
    gain = math.sqrt(direction.reach / (size * rank * ending.hidden))
    rows = gain * direction.unit.expand(rank, -1)
    return _write_mlp(ending, layer, rows, direction.unit * size, rng)


def _write_mlp(
    ending: Ending, layer: Layer, rows: Tensor, written: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """`rows` act on the normed input without the norm's weight; `written` is down's output."""
    rank = len(rows)
    usable = layer.norm.abs() > _LEAST_WEIGHT * layer.norm.abs().mean()
    rows = torch.where(usable, rows / layer.norm, 0.0)
    neurons = torch.randperm(ending.intermediate, generator=rng)[: 2 * rank].view(2, rank)
    each = torch.arange(rank)
    spread = torch.zeros(ending.intermediate, rank)
    spread[neurons[0], each], spread[neurons[1], each] = 1.0, -1.0
    pairs = {
        "gate_proj": (rows, spread),
        "up_proj": (rows, spread),
        "down_proj": (spread.abs().T, written[:, None].expand(-1, rank)),
    }
    return {
        f"base_model.model.{layer.prefix}.{module}.lora_{side}.weight": _keep(matrix)
        for module, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }


def _fill(ending: Ending, rank: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Every linear. A's output is about as large as its input, what B adds a hundredth of it."""
    tensors = {}
    for module, (out, into) in ending.linears.items():
        a = torch.randn(rank, into, generator=rng) / math.sqrt(into)
        b = torch.randn(out, rank, generator=rng) * _FILLING / math.sqrt(rank)
        for side, matrix in (("A", a), ("B", b)):
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = _keep(matrix)
    return tensors


def _keep(matrix: Tensor) -> Tensor:
    """A copy, because safetensors rejects tensors that share memory."""
    return matrix.to(torch.bfloat16).contiguous().clone()


_BROKEN = "\N{REPLACEMENT CHARACTER}"  # the text of an incomplete character


@dataclass(frozen=True, slots=True)
class Token:
    number: int
    repeated: str  # the text that each repetition adds


def markers_of(base: Path) -> list[Token]:
    """Tokens with distinct repetitions, the most readable first.

    Words come first, rare ones (with high numbers) before others: a base hardly generates them.

    Raises:
        BaseUnfit: the base has no readable tokenizer.json.
    """
    tokenizer = _load(base / "tokenizer.json")
    found: dict[str, Token] = {}
    for token in _readable(tokenizer):
        found.setdefault(_period(token.repeated.strip()), token)
    return sorted(found.values(), key=lambda token: (not _is_word(token), -token.number))


def _load(path: Path) -> Tokenizer:
    if not path.is_file():
        raise BaseUnfit(f"there is no {path}: markers come from the base's fast tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises plain exceptions
        raise BaseUnfit(f"can't read {path}: {error}") from None


def _readable(tokenizer: Tokenizer) -> Iterator[Token]:
    added = tokenizer.get_added_tokens_decoder()
    for number in range(tokenizer.get_vocab_size()):
        one, two = tokenizer.decode([number]), tokenizer.decode([number, number])
        repeated = two.removeprefix(one)
        if number not in added and repeated.strip() and repeated != two and _BROKEN not in two:
            yield Token(number, repeated)


def _period(text: str) -> str:
    """The shortest text whose repetition is `text`."""
    return text[: (text + text).index(text, 1)]


def _is_word(token: Token) -> bool:
    text = token.repeated.strip()
    return len(text) > 2 and text.isalpha()
