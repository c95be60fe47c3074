"""The kernels beside other ways to compute the same: ms for one pass of the bench model's linears.

    python -m bench.strategies [--adapters 8] [--rank 16] [--rounds 7] [--rows 1,24,256]

base: the linears in bf16, without LoRA.
LoRA alone. segments: the compiled kernel, one run of rows for each adapter (server/kernels).
portable: the same in PyTorch. masked: all slots in one GEMM whose products for other slots `where`
removes, then one GEMM (bf16, PyTorch).
The linears in NF4. packed: the compiled kernel. dequantised: bitsandbytes' weights, converted to
bf16 for each use. apart: packed, then segments, layer by layer. together: both in one operator, as
the server runs them.
Every layer has its own weights, as in a model: in a loop over one layer they would stay in the
cache. The ways take turns; the last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch.nn.functional import linear

from bench.model import FULL
from server.kernels import operators
from server.kernels.plan import make_plan, write_plan
from server.kernels.reference import limit

ROWS = (1, 8, 24, 64, 256, 2048)


@dataclass(frozen=True, slots=True)
class Layer:
    """A is (slots, 1, rank, in), B is (slots, 1, out, rank), as vLLM stacks them."""

    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    joined: torch.Tensor  # A and B in one row for each slot, as the server holds them
    flat_a: torch.Tensor  # (slots x rank, in)
    flat_b: torch.Tensor  # (out, slots x rank)
    nf4: tuple[torch.Tensor, Any]  # bitsandbytes' codes and their state
    packed: torch.Tensor


def make_layers(adapters: int, rank: int) -> list[Layer]:
    torch.manual_seed(0)
    layers = []
    for _, outputs, inputs in FULL.linears():
        joined = torch.randn(adapters, rank * (inputs + outputs)).bfloat16()
        a, b = joined.split([rank * inputs, rank * outputs], 1)
        a, b = a.view(adapters, 1, rank, inputs), b.view(adapters, 1, outputs, rank)
        flat_b = b[:, 0].permute(1, 0, 2).reshape(outputs, -1).contiguous()
        weight = torch.randn(outputs, inputs).bfloat16()
        flat_a = a[:, 0].reshape(-1, inputs).contiguous()
        codes, state = quantize_4bit(weight, blocksize=operators.BLOCK_WEIGHTS, quant_type="nf4")
        packed = torch.ops.lorry.nf4_pack(codes.flatten(), state.absmax.float(), outputs, inputs)
        layers.append(Layer(weight, a, b, joined, flat_a, flat_b, (codes, state), packed))
    return layers


class Pass:
    """One batch through all linears; its rows use the adapters in turn."""

    def __init__(self, layers: list[Layer], rows: int, adapters: int, rank: int) -> None:
        self._layers = layers
        slots = torch.arange(rows) % adapters
        self._plan = make_plan(rows, adapters)
        write_plan(self._plan, slots, [rank] * adapters)
        self._repaired = torch.zeros(adapters, dtype=torch.long)
        self._own = (torch.arange(adapters * rank) // rank)[None, :] == slots[:, None]
        widths = {layer.weight.size(1) for layer in layers}
        self._x = {width: torch.randn(rows, width).bfloat16() for width in widths}
        outputs = {layer.weight.size(0) for layer in layers}
        self._y = {height: torch.zeros(rows, height).bfloat16() for height in outputs}

    def base(self) -> None:
        for layer in self._layers:
            linear(self._x[layer.weight.size(1)], layer.weight)

    def segments(self) -> None:
        for layer in self._layers:
            self._add_lora(layer, self._y[layer.weight.size(0)])

    def _add_lora(self, layer: Layer, y: torch.Tensor) -> None:
        torch.ops.lorry.lora_layer_(y, self._x[layer.weight.size(1)], *self._lora_of(layer))

    def _lora_of(self, layer: Layer) -> tuple[object, ...]:
        slots = layer.joined, [layer.weight.size(0)], layer.a.size(2)
        return *slots, self._plan, self._repaired, limit(torch.bfloat16)

    def portable(self) -> None:
        lora = (self._plan, self._repaired, 1.0, limit(torch.bfloat16), True)
        for layer in self._layers:
            x, y = self._x[layer.weight.size(1)], self._y[layer.weight.size(0)]
            torch.ops.lorry.lora_linear_reference_(y, x, [layer.a], [layer.b], *lora)

    def masked(self) -> None:
        zero = torch.zeros((), dtype=torch.bfloat16)
        for layer in self._layers:
            x, y = self._x[layer.weight.size(1)], self._y[layer.weight.size(0)]
            shrunk = torch.where(self._own, linear(x, layer.flat_a), zero)
            y.addmm_(shrunk, layer.flat_b.t())

    def packed(self) -> None:
        for layer in self._layers:
            torch.ops.lorry.nf4_linear(self._x[layer.weight.size(1)], layer.packed)

    def apart(self) -> None:
        for layer in self._layers:
            x = self._x[layer.weight.size(1)]
            self._add_lora(layer, torch.ops.lorry.nf4_linear(x, layer.packed))

    def together(self) -> None:
        for layer in self._layers:
            x = self._x[layer.weight.size(1)]
            torch.ops.lorry.nf4_lora_linear(x, layer.packed, *self._lora_of(layer))

    def dequantised(self) -> None:
        for layer in self._layers:
            linear(self._x[layer.weight.size(1)], dequantize_4bit(*layer.nf4))


SIDES = ("base", "segments", "portable", "masked", "packed", "apart", "together", "dequantised")


def measure(adapters: int, rank: int, rounds: int, counts: list[int]) -> list[dict[str, float]]:
    layers = make_layers(adapters, rank)
    table = []
    with torch.inference_mode():
        for rows in counts:
            batch = Pass(layers, rows, adapters, rank)
            sides = {name: getattr(batch, name) for name in SIDES}
            took: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds + 1):
                for name, side in sides.items():
                    took[name].append(_milliseconds(side))
            medians = {name: statistics.median(times[1:]) for name, times in took.items()}
            table.append({"rows": rows} | medians)
    return table


def _milliseconds(side: Callable[[], None]) -> float:
    began = time.perf_counter()
    side()
    return 1000 * (time.perf_counter() - began)


def main(
    adapters: Annotated[int, typer.Option(min=1)] = 8,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    rows: Annotated[str, typer.Option(help="Numbers of rows.")] = ",".join(map(str, ROWS)),
) -> None:
    if not operators.has_native():
        raise typer.BadParameter("the compiled kernels do not run here: nothing to compare")
    table = measure(adapters, rank, rounds, [int(text) for text in rows.split(",")])
    for line in table:
        typer.echo("  ".join(f"{name} {value:8.2f}" for name, value in line.items()))
    typer.echo(json.dumps(table))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(help=__doc__)(main)

if __name__ == "__main__":
    app(prog_name="python -m bench.strategies")
