"""The tensors of an adapter by the base's modules, and what is said of those that belong to none.

Also undoes what training tools do to the names: a wrapper around a module (of torch.compile, FSDP,
activation checkpointing, DDP) computes what the module computes. Knows nothing of values.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from adapters.checkpoint.base import EXPERT, LAYER, SERVED_MODULES, Base
from adapters.checkpoint.tensors import Tensor
from adapters.errors import Problem, quote

PREFIX = "base_model.model."
SIDES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\."
)
# The name of PEFT's adapter, which save_pretrained leaves out and a plain state dict has.
ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB])\.default(?=\.weight$)")
# A text model inside a multimodal one: "model.language_model.layers", "language_model.model.layers"
TEXT_MODEL = re.compile(r"(?:^|(?<=\.))language_model\.")

# Tensors that PEFT saves for an adapted embedding, and the original weights beside them.
HEADS = (".lora_embedding_A", ".lora_embedding_B", ".base_layer.weight")
# Layers that PEFT saves whole if the vocabulary grew or save_embedding_layers is set.
EMBEDDINGS = (".embed_tokens.weight", ".lm_head.weight")
# Ends of the names of tensors that a feature adds -> the code of its key in the config.
FEATURES = {
    ".lora_magnitude_vector": "dora_unsupported",
    ".lora_magnitude_vector.weight": "dora_unsupported",
    ".lora_A.bias": "lora_bias_unsupported",
    ".lora_B.bias": "lora_bias_unsupported",
    ".trainable_tokens_delta": "trainable_tokens_unsupported",
}

SAVE_WHOLE = "save the whole adapter again with PEFT's save_pretrained"
RIGHT_BASE = "publish it with --base set to the model that it was trained on"


@dataclass(slots=True)
class Pair:
    """The two factors of one module's adapter: A is (rank, in), B is (out, rank).

    `change` is a bound of what they add to the module's weights, in Frobenius norm; None until
    their values are read.
    """

    module: str
    a: Tensor | None = None
    b: Tensor | None = None
    change: float | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in (self.a, self.b) if tensor)


def pair_tensors(
    tensors: Mapping[str, Tensor], base: Base
) -> tuple[dict[str, Pair], list[Problem]]:
    """The tensors by module of the base, and a problem for each tensor that belongs to none."""
    pairs: dict[str, Pair] = {}
    problems = []
    for name, tensor in tensors.items():
        module, side = split_name(name)
        if module in base.linears:
            pair = pairs.setdefault(module, Pair(module))
            if side == "A":
                pair.a = tensor
            else:
                pair.b = tensor
        else:
            problems.append(_explain_stray(tensor, module, base))
    return pairs, problems


def plain_names(names: Iterable[str], base: Base) -> dict[str, str]:
    """The names that tools changed -> those that PEFT writes; empty if they would be ambiguous.

    Only names that then belong to a module of the base, so that nothing is guessed.
    """
    wanted = {name: _plain_name(name, base) for name in names}
    counts = Counter(wanted.values())
    changed = {name: plain for name, plain in wanted.items() if name != plain}
    return changed if all(counts[plain] == 1 for plain in changed.values()) else {}


def describe_changes(changed: Mapping[str, str]) -> str:
    """What `plain_names` changes: one of the names, before and after, and how many there are."""
    name, plain = next(iter(changed.items()))
    return f"{len(changed):,} tensors were renamed, as {quote(name)} to {quote(plain)}"


def merge_causes(problems: Iterable[Problem], known: Collection[str] = ()) -> list[Problem]:
    """One problem for each cause, with a count; none for the codes `known` already."""
    causes: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        if problem.code not in known:
            causes.setdefault((problem.code, problem.fix), []).append(problem)
    return [_count_others(same[0], len(same) - 1) for same in causes.values()]


def _count_others(first: Problem, others: int) -> Problem:
    if not others:
        return first
    return replace(first, message=f"{first.message} (and {others:,} more like it)")


def split_name(name: str) -> tuple[str, str]:
    """The module of a tensor, and its side, A or B; both are empty for any other name."""
    for suffix, side in SIDES.items():
        if name.startswith(PREFIX) and name.endswith(suffix):
            return name.removeprefix(PREFIX).removesuffix(suffix), side
    return "", ""


def _plain_name(name: str, base: Base) -> str:
    plain = ADAPTER_NAME.sub("", WRAPPERS.sub("", name))
    text = TEXT_MODEL.sub("", plain, count=1)
    candidates = (plain, text, PREFIX + plain, PREFIX + text)
    return next((each for each in candidates if split_name(each)[0] in base.linears), name)


def _explain_stray(tensor: Tensor, module: str, base: Base) -> Problem:
    name, where = tensor.name, quote(tensor.name)
    for suffix, code in FEATURES.items():
        if name.endswith(suffix):
            said = "belongs to a feature that cannot be served"
            return Problem(code, where, said, "train a plain LoRA adapter without it")
    if name.endswith(HEADS):
        said = "adapts the embeddings or the output head, which is not served"
        fix = "train without embed_tokens and lm_head"
        return Problem("module_not_served", where, said, fix)
    if name.endswith(EMBEDDINGS):
        return _explain_embeddings(tensor, base)
    if not module:
        said = f"is not called {PREFIX}MODULE.lora_A.weight or ...lora_B.weight"
        return Problem("tensor_name_unsupported", where, said, SAVE_WHOLE)
    if module.rpartition(".")[2] not in SERVED_MODULES:
        said = "adapts a module that is not served"
        served = ", ".join(sorted(SERVED_MODULES))
        return Problem("module_not_served", where, said, f"train on some of {served}")
    if EXPERT.search(module):
        said = "adapts an expert of a mixture, which is not served"
        return Problem("module_not_served", where, said, "train on the attention layers only")
    layer = LAYER.search(module)
    if layer and int(layer[1]) >= base.layers:
        said = f"adapts layer {int(layer[1])}, the base has {base.layers} layers"
        return Problem("layer_unknown", where, said, RIGHT_BASE)
    if prefix := _foreign_prefix(module, base):
        return _explain_prefix(where, prefix)
    return Problem("module_unknown", where, "adapts a module that the base lacks", RIGHT_BASE)


def _explain_embeddings(tensor: Tensor, base: Base) -> Problem:
    tokens = tensor.shape[0] if tensor.shape else 0
    if base.vocabulary and tokens != base.vocabulary:
        said = (
            f"is the base's own layer, saved whole with {tokens:,} tokens, and the base has "
            f"{base.vocabulary:,}: the embeddings were resized, and one adapter alone cannot have "
            "its own"
        )
        fix = (
            "serve the resized base: save it with its tokenizer, give it as --base, and save the"
            " adapter with save_embedding_layers=False"
        )
    else:
        said = "is the base's own layer, saved whole, which one adapter alone cannot have"
        fix = (
            "save with save_embedding_layers=False; a base with other embeddings must be served"
            " itself"
        )
    return Problem("embeddings_saved", quote(tensor.name), said, fix)


def _foreign_prefix(module: str, base: Base) -> str:
    """What stands before the name of one of the base's modules; "" if it is none of them."""
    parts = module.split(".")
    for start in range(1, len(parts)):
        if ".".join(parts[start:]) in base.linears:
            return ".".join(parts[:start]) + "."
    return ""


def _explain_prefix(where: str, prefix: str) -> Problem:
    if prefix.startswith(PREFIX):
        said = f"has the prefix {PREFIX!r} twice: it was trained on top of another adapter"
        fix = "merge that one into the base, serve the result, and give it as --base"
    else:
        said = f"has {quote(prefix)} before the name of the base's module"
        fix = f"save it with the save_pretrained of PEFT's own model, or {RIGHT_BASE}"
    return Problem("module_unknown", where, said, fix)
