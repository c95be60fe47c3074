"""The memory of full fine-tuning, LoRA and QLoRA by parts, and the adapter's size."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from training.estimate.dry_run import ADAPTER, Step, activation_bytes, logits_bytes
from training.estimate.shape import add_lora, build_base, quiet
from training.nf4 import packed_bytes, quantized_linears

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB: Final = 1 << 30
CARDS: Final = (24, 40, 80)  # GiB
METHODS: Final = ("full", "lora", "qlora")
# Of CUDA's context and libraries, and what the allocator can't use. Assumed, not measured.
CONTEXT_BYTES: Final = GIB
FRAGMENTATION: Final = 0.05
# In a safetensors header: name, type, shape and offsets of one tensor.
HEADER_BYTES: Final = 160


@dataclass(frozen=True, slots=True)
class Plan:
    """A run to estimate. `dtype` is that of products and of unquantized weights; without `gpu` it
    is a run on a processor, where AdamW is PyTorch's own and its states have the weights' type."""

    rank: int
    targets: Sequence[str]
    batch_size: int
    length: int
    dtype: torch.dtype = torch.bfloat16
    gpu: bool = True


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes at the peak of a step, by kind."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead

    def as_json(self) -> dict[str, int]:
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True, slots=True)
class Need:
    """One method's memory, without and with gradient checkpointing."""

    plain: Parts
    checkpointing: Parts

    def smallest_card(self) -> tuple[int | None, bool]:
        """The smallest card that holds it, and whether only with gradient checkpointing."""
        for card in CARDS:
            for parts, checkpointing in ((self.plain, False), (self.checkpointing, True)):
                if parts.total <= card * GIB:
                    return card, checkpointing
        return None, True


@dataclass(frozen=True, slots=True)
class Estimate:
    """Parameters of the model and of the adapter, and the memory of each method."""

    parameters: int
    trainable: int
    adapter_bytes: int
    all_logits_bytes: int  # what a trainer adds that holds the logits of a batch as a whole
    needs: Mapping[str, Need]

    def as_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
            "adapter_bytes": self.adapter_bytes,
            "all_logits_bytes": self.all_logits_bytes,
            "memory_bytes": {
                method: {
                    "plain": need.plain.as_json(),
                    "gradient_checkpointing": need.checkpointing.as_json(),
                    "smallest_card_gib": need.smallest_card()[0],
                }
                for method, need in self.needs.items()
            },
        }


@dataclass(frozen=True, slots=True)
class _Counts:
    """Numbers of weights, and bytes of the base in NF4."""

    base: int
    lora: int
    lora_tensors: int
    nf4_bytes: int
    largest_linear: int


def estimate(config: "PretrainedConfig", plan: Plan) -> Estimate:
    """Estimate a run on a base with this config; raises BaseInvalid or RecipeInvalid."""
    counts = _count(config, plan)
    needs = {
        method: Need(*(_estimate(method, config, plan, counts, each) for each in (False, True)))
        for method in METHODS
    }
    return Estimate(
        parameters=counts.base,
        trainable=counts.lora,
        adapter_bytes=2 * counts.lora + HEADER_BYTES * counts.lora_tensors,
        all_logits_bytes=logits_bytes(config, _step("qlora", plan, checkpointing=True)),
        needs=needs,
    )


def _count(config: "PretrainedConfig", plan: Plan) -> _Counts:
    with torch.device("meta"), quiet():
        base = build_base(config, plan.dtype)
        linears = [linear.weight.numel() for linear in quantized_linears(base).values()]
        weights = sum(parameter.numel() for parameter in base.parameters())
        adapted = add_lora(base, plan.rank, plan.targets)
    trainable, _ = adapted.get_nb_trainable_parameters()
    return _Counts(
        base=weights,
        lora=trainable,
        lora_tensors=sum(each.requires_grad for each in adapted.parameters()),
        nf4_bytes=sum(map(packed_bytes, linears)) + (weights - sum(linears)) * plan.dtype.itemsize,
        largest_linear=max(linears, default=0),
    )


def _step(method: str, plan: Plan, checkpointing: bool) -> Step:
    is_full = method == "full"
    return Step(
        batch_size=plan.batch_size,
        length=plan.length,
        checkpointing=checkpointing,
        dtype=plan.dtype,
        rank=0 if is_full else plan.rank,
        targets=() if is_full else plan.targets,
        loss="triton" if plan.gpu else "torch",
    )


def _estimate(
    method: str, config: "PretrainedConfig", plan: Plan, counts: _Counts, checkpointing: bool
) -> Parts:
    activations = activation_bytes(config, _step(method, plan, checkpointing))
    size = plan.dtype.itemsize
    if method == "full":
        weights, trained, trained_size = counts.base * size, counts.base, size
    else:
        trained, trained_size = counts.lora, ADAPTER.itemsize
        base = counts.nf4_bytes if method == "qlora" else counts.base * size
        weights = base + trained * trained_size
    if method == "qlora":  # one linear at a time is dequantized for its product
        activations += counts.largest_linear * size
    gradients = trained * trained_size
    optimizer = trained * _state_size(trained_size)
    known = weights + gradients + optimizer + activations
    overhead = CONTEXT_BYTES + int(FRAGMENTATION * known) if plan.gpu else 0
    return Parts(weights, gradients, optimizer, activations, overhead)


def _state_size(trained_size: int) -> int:
    """Bytes of AdamW for one weight: two moments, and a copy in fp32 of a bf16 weight.

    An adapter is in fp32 and needs no copy.
    """
    return 8 if trained_size == 4 else 12
