"""The plugin's arithmetic as PyTorch operators, `torch.ops.lorry.*`, opaque to torch.compile.

Schemas, and what the compiler must know (mutated arguments, output shapes), stand here; `native/`
computes what the processor supports, `reference.py` everything else.
"""

import hashlib
import logging
import os
from functools import cache
from importlib import util
from pathlib import Path

import torch

from server.kernels import PORTABLE_VARIABLE, reference, stamp

# Kept for the life of the process: operators vanish with their library.
_LIBRARY = torch.library.Library("lorry", "FRAGMENT")
_NATIVE = "server.kernels._native"
_SCHEMAS: list[str] = []


def _define(schema: str) -> None:
    _SCHEMAS.append(schema)
    _LIBRARY.define(schema)


_LINEAR = (
    "(Tensor(a!) y, Tensor x, Tensor[] a, Tensor[] b, Tensor plan, Tensor(b!) repaired, "
    "float scale, float bound, bool add) -> ()"
)
# y += B A x on the rows of `plan` (server/kernels/plan.py), slice by slice of y's columns; every
# term is first made finite and at most `bound`. `repaired` counts, per slot, the changed terms.
_define("lora_linear_" + _LINEAR)
_define("lora_linear_reference_" + _LINEAR)
_define("lora_shrink_(Tensor(a!)[] y, Tensor x, Tensor[] a, Tensor plan, float scale) -> ()")
_define(
    "lora_expand_(Tensor(a!) y, Tensor[] x, Tensor[] b, Tensor plan, Tensor(b!) repaired, "
    "float bound, int start, bool add) -> ()"
)
# lora_linear_ for joined slots (server/kernels/slots.py), as the model's layers have them;
# `columns` are the widths of y's slices, `ranks` the ranks of a slot.
_define(
    "lora_layer_(Tensor(a!) y, Tensor x, Tensor slots, int[] columns, int ranks, Tensor plan, "
    "Tensor(b!) repaired, float bound) -> ()"
)
# bitsandbytes' NF4 codes and fp32 absmax (blocks of 64) -> (n / 16, k / 64, 576 bytes)
_define("nf4_pack(Tensor codes, Tensor absmax, int n, int k) -> Tensor")
# x (rows, k) times the transposed packed weights -> (rows, n)
_define("nf4_linear(Tensor x, Tensor packed) -> Tensor")
# nf4_linear, then lora_layer_ on its result: one operator, as each call has to wake the threads,
# and as a batch without adapters then makes no call for LoRA.
_define(
    "nf4_lora_linear(Tensor x, Tensor packed, Tensor slots, int[] columns, int ranks, Tensor plan, "
    "Tensor(a!) repaired, float bound) -> Tensor"
)

_LIBRARY.impl("lora_linear_reference_", reference.lora_linear_, "CPU")
_LIBRARY.impl("lora_shrink_", reference.lora_shrink_, "CPU")
_LIBRARY.impl("lora_expand_", reference.lora_expand_, "CPU")

PANEL_COLUMNS = 16
BLOCK_WEIGHTS = 64


def kinds() -> str:
    """Identifies the operators that a model compiled now calls: a saved one may call others."""
    schemas = hashlib.sha256("\n".join(_SCHEMAS).encode()).hexdigest()[:16]
    return f"{'native' if has_native() else 'portable'} {schemas}"


def _changes_in_place(*args: object) -> None:
    """These operators return nothing: the compiler only needs to know the mutated arguments."""


for _name in (
    *("lora_linear_", "lora_linear_reference_", "lora_layer_"),
    *("lora_shrink_", "lora_expand_"),
):
    torch.library.register_fake(f"lorry::{_name}", _changes_in_place, lib=_LIBRARY)


def _nf4_linear(x: torch.Tensor, packed: torch.Tensor, *lora: object) -> torch.Tensor:
    return x.new_empty((x.size(0), packed.size(0) * PANEL_COLUMNS))


for _name in ("nf4_linear", "nf4_lora_linear"):
    torch.library.register_fake(f"lorry::{_name}", _nf4_linear, lib=_LIBRARY)


@cache
def has_native() -> bool:
    """Whether the compiled kernels are built, enabled, and run here (AMX, AVX512-BF16 or AVX2)."""
    if os.environ.get(PORTABLE_VARIABLE) == "1":
        return False
    spec = util.find_spec(_NATIVE)
    if spec is None or spec.origin is None:
        return False
    try:
        if not stamp.is_current(library := Path(spec.origin)):
            _warn("were built from other sources")
            return False
        torch.ops.load_library(library)
    except OSError as error:  # built for another PyTorch, or not readable
        _warn(f"don't load ({error})")
        return False
    return bool(torch.ops.lorry.instructions())


def _warn(what: str) -> None:
    logging.getLogger(__name__).warning(
        "Lorry's compiled kernels %s, so slower ones serve: run `make setup`.", what
    )
