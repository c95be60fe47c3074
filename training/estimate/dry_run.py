"""One training step without data: the real model, loss and backward pass on fake tensors.

Fake tensors have a shape, a type and a device, and no values: an operator returns at once what it
would allocate. So the peak is that of the modules, of PEFT's layers, of TRL's loss and of autograd
themselves, for every architecture, on a machine that could never hold the model.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.estimate.shape import add_lora, build_base, quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# Models with more layers are run with this many and with half as many: kinds of layers that
# alternate do so with a period of 2 or 4.
DEEP: Final = 8
ADAPTER: Final = torch.float32  # as training/qlora.py raises it
TILE: Final = 4096, 32768  # tokens and vocabulary of TRL's loss


@dataclass(frozen=True, slots=True)
class Step:
    """One step's batch, and how its weights are kept and trained.

    `rank` and `targets` are the adapter's; without them every weight is trained. `dtype` is that of
    the products. `loss` is TRL's as it runs on a processor (`torch`) or on a GPU (`triton`), or
    transformers' own, which other trainers have: it holds the logits of the whole batch (`logits`).
    """

    batch_size: int
    length: int
    checkpointing: bool
    dtype: torch.dtype = torch.bfloat16
    rank: int = 0
    targets: Sequence[str] = ()
    loss: Literal["torch", "triton", "logits"] = "triton"


def activation_bytes(config: "PretrainedConfig", step: Step) -> int:
    """The most bytes that a forward and a backward pass need beside weights and gradients.

    The gradients are there from the start, as they are when they accumulate over several passes.
    Of a deep model two shallow copies are run: every layer adds as much as the one before.
    """
    layers = len(_layers(_build_base(config, step)))
    if layers <= DEEP:
        return run_step(config, step, layers)
    shallow, deeper = (run_step(config, step, depth) for depth in (DEEP // 2, DEEP))
    return deeper + (layers - DEEP) * (deeper - shallow) // (DEEP - DEEP // 2)


def logits_bytes(config: "PretrainedConfig", step: Step) -> int:
    """What the logits of the whole batch add, where a trainer holds them."""
    whole = run_step(config, replace(step, loss="logits"), DEEP // 2)
    return max(0, whole - run_step(config, step, DEEP // 2))


def run_step(config: "PretrainedConfig", step: Step, layers: int) -> int:
    """The peak of a step of the model with its first layers only."""
    with torch.device("meta"), quiet():
        model = _add_adapter(_build_base(config, step, layers), step)
    with FakeTensorMode(), quiet():
        _make_fake(model)
        trained = [each for each in model.parameters() if each.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        ids = torch.zeros((step.batch_size, step.length), dtype=torch.long)
        held = [*model.parameters(), *model.buffers(), *(each.grad for each in trained), ids]
        live = LiveBytes(held)
        with live, _autocast(step):
            _compute_loss(model, step, ids).backward()
    return live.peak


def _build_base(config: "PretrainedConfig", step: Step, layers: int | None = None) -> Any:
    with torch.device("meta"), quiet():
        base = build_base(config, step.dtype)
    if layers is not None:
        del _layers(base)[layers:]
    return base


def _layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of a model: its longest list of modules."""
    lists = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    return max(lists, key=len, default=torch.nn.ModuleList())


def _add_adapter(base: Any, step: Step) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))  # as SFTTrainer does
    if step.checkpointing:
        base.gradient_checkpointing_enable()
    if not step.rank:
        return base.train()
    model: Any = add_lora(base, step.rank, step.targets)
    if step.checkpointing:
        model.enable_input_require_grads()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(ADAPTER)
    return model.train()


def _make_fake(model: torch.nn.Module) -> None:
    """Put a fake tensor of the processor in place of each one; what was tied stays tied."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    made[tensor] = (
                        torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                    )
                if tensor is not None:
                    held[name] = made[tensor]  # type: ignore[assignment]


@contextmanager
def _autocast(step: Step) -> Iterator[None]:
    """As the trainer with `bf16`: products of fp32 adapters are computed in bf16."""
    if step.dtype == torch.float32:
        yield
        return
    with torch.autocast("cpu", dtype=step.dtype):
        yield


def _compute_loss(model: Any, step: Step, ids: torch.Tensor) -> torch.Tensor:
    if step.loss != "triton":
        tiled = step.loss == "torch"
        outputs = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=tiled)
        loss: torch.Tensor = outputs.loss
        return loss
    base = model.get_base_model() if step.rank else model
    hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head: torch.Tensor = base.get_output_embeddings().weight
    return TiledLoss.apply(hidden.flatten(0, 1), head)  # type: ignore[no-any-return,no-untyped-call]


class TiledLoss(torch.autograd.Function):
    """What TRL's loss allocates on a GPU, where Triton kernels compute each tile in place.

    Triton runs no fake tensors, so this stands in for trl.kernels.ChunkedLogProbFunction.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()  # the tokens that count
        ctx.save_for_backward(hidden, head)
        _allocate_tile(hidden)
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        tile = _allocate_tile(ctx.saved_tensors[0])
        sums = [  # gradients are added up in fp32
            torch.zeros(tensor.shape, dtype=torch.float32) if needed else None
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        ]
        del tile
        hidden, head = (each if each is None else each.bfloat16() for each in sums)
        assert hidden is not None
        return hidden, head


def _allocate_tile(hidden: torch.Tensor) -> torch.Tensor:
    """As wide as a tile can be, however small the vocabulary."""
    return torch.empty((min(TILE[0], len(hidden)), TILE[1]), dtype=hidden.dtype)


class LiveBytes(TorchDispatchMode):
    """The bytes of the storages that operators allocated and nobody has freed, and their peak.

    The storages of `held` tensors, and views of them, do not count.
    """

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor.untyped_storage())
        self.peak = max(self.peak, self._live)
        return returned

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size
