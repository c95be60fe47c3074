"""Reads PEFT's adapter_config.json: rank and scale of each module, and its unservable settings.

Knows nothing of tensors or of the base. Everything in the file is data: no path in it is opened.
The author of an adapter writes its patterns for module names, and the engine runs them again, so
only patterns that are too simple to be slow are accepted.
"""

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from adapters.checkpoint.peft_features import find_unservable, invalid
from adapters.errors import Problem, quote
from adapters.store.files import CONFIG, SAVE_AGAIN, FileRefused, read_object
from adapters.store.strict_json import RepeatedKey

# The largest --max-lora-rank of an engine.
MAX_RANK = 512
# Trained adapters have an alpha/r of 0.5 to 64; more than this is a mistake or an attack.
MAX_SCALE = 1024.0
MAX_PATTERNS = 4096
MAX_REGEXES = 16
MAX_PATTERN_LENGTH = 256

PATTERN_TOKEN = re.compile(
    r"(?P<repeat>[*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})"
    r"|(?P<open>\((?:\?:)?)"
    r"|(?P<close>\))"
    r"|(?P<bar>\|)"
    r"|(?P<atom>\\[.dw_-]|\[\^?[A-Za-z0-9_.-]{1,64}\]|[A-Za-z0-9_.^$-])"
)

# After these problems there is no rank or scale to check tensors against.
UNUSABLE = frozenset(
    {
        "rank_invalid",
        "alpha_invalid",
        "rank_pattern_invalid",
        "alpha_pattern_invalid",
        "pattern_unsafe",
    }
)


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of a valid adapter_config.json that serving needs."""

    rank: int
    alpha: float
    use_rslora: bool
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    targets: tuple[str, ...]
    base_name: str | None

    @property
    def largest_rank(self) -> int:
        """The rank that the engine must allow: vLLM also counts patterns that match no module."""
        return max([self.rank, *(rank for _, rank in self.ranks)])

    def rank_of(self, module: str) -> int:
        matching = (rank for pattern, rank in self.ranks if pattern.match(module))
        return next(matching, self.rank)

    def scale_of(self, module: str) -> float:
        matching = (alpha for pattern, alpha in self.alphas if pattern.match(module))
        rank = self.rank_of(module)
        return next(matching, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def read_peft_config(folder: Path, max_rank: int) -> tuple[PeftConfig | None, list[Problem]]:
    """The config and all its problems; the config is None where rank or scale is unknown."""
    try:
        raw = read_object(folder, CONFIG)
    except FileRefused as refused:
        return None, [refused.problem]
    except RepeatedKey as error:
        said = "is written twice, so that readers may differ on it"
        return None, [Problem("config_key_repeated", quote(error.key), said, SAVE_AGAIN)]
    except ValueError:
        said = "is not a JSON object in UTF-8 with finite numbers"
        return None, [Problem("config_malformed", CONFIG, said, SAVE_AGAIN)]
    problems = [*find_unservable(raw), *_find_bad_numbers(raw, max_rank)]
    problems += [*_find_bad_patterns(raw, max_rank), *_find_bad_names(raw)]
    if any(problem.code in UNUSABLE for problem in problems):
        return None, problems
    return _build(raw), problems


def _build(raw: Mapping[str, Any]) -> PeftConfig:
    base_name = raw.get("base_model_name_or_path")
    return PeftConfig(
        rank=raw["r"],
        alpha=float(raw["lora_alpha"]),
        use_rslora=raw.get("use_rslora") is True,
        ranks=_compile(raw.get("rank_pattern")),
        alphas=_compile(raw.get("alpha_pattern")),
        targets=_plain_targets(raw),
        base_name=base_name if isinstance(base_name, str) else None,
    )


def _compile(patterns: Mapping[str, Any] | None) -> tuple[tuple[re.Pattern[str], Any], ...]:
    return tuple((compile_suffix(key), value) for key, value in (patterns or {}).items())


def _plain_targets(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The module names that PEFT wraps wherever they occur; none if the config narrows them."""
    targets = raw.get("target_modules")
    narrowed = raw.get("layers_to_transform") is not None or raw.get("exclude_modules")
    if narrowed or not isinstance(targets, list):
        return ()
    return tuple(target for target in targets if isinstance(target, str))


def _find_bad_numbers(raw: Mapping[str, Any], max_rank: int) -> Iterator[Problem]:
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not is_rank(rank):
        yield invalid("rank_invalid", "r", rank, "a whole number of at least 1")
    elif rank > max_rank:
        yield _too_large_rank("r", rank, max_rank)
    if not is_alpha(alpha):
        yield invalid("alpha_invalid", "lora_alpha", alpha, "a number above 0")
    elif alpha > MAX_SCALE * MAX_RANK:
        yield _too_large_alpha("lora_alpha", alpha)
    if not isinstance(base := raw.get("base_model_name_or_path"), str | None):
        yield invalid("config_value_invalid", "base_model_name_or_path", base, "a name or null")
    if not isinstance(raw.get("use_rslora", False), bool | None):
        said = raw["use_rslora"]
        yield invalid("config_value_invalid", "use_rslora", said, "true or false")


def _find_bad_names(raw: Mapping[str, Any]) -> Iterator[Problem]:
    targets = raw.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if not names or not all(isinstance(name, str) for name in names):
        wanted = "a list of module names or one pattern"
        yield invalid("target_modules_invalid", "target_modules", targets, wanted)


def _find_bad_patterns(raw: Mapping[str, Any], max_rank: int) -> Iterator[Problem]:
    yield from _judge_patterns(raw, "rank_pattern", is_rank)
    yield from _judge_patterns(raw, "alpha_pattern", is_alpha)
    for key, value in _items(raw.get("rank_pattern")):
        if is_rank(value) and value > max_rank:
            yield _too_large_rank(f"rank_pattern[{quote(key)}]", value, max_rank)
    for key, value in _items(raw.get("alpha_pattern")):
        if is_alpha(value) and value > MAX_SCALE * MAX_RANK:
            yield _too_large_alpha(f"alpha_pattern[{quote(key)}]", value)


def _judge_patterns(
    raw: Mapping[str, Any], field: str, is_value: Callable[[Any], bool]
) -> Iterator[Problem]:
    code, patterns = f"{field}_invalid", raw.get(field)
    if patterns is not None and not isinstance(patterns, dict):
        yield invalid(code, field, patterns, "an object of module name to number")
    items = _items(patterns)
    if len(items) > MAX_PATTERNS:
        yield invalid(code, field, f"{len(items)} entries", f"at most {MAX_PATTERNS} entries")
        return
    for key, value in items:
        if not is_value(value):
            yield invalid(code, f"{field}[{quote(key)}]", value, "a number above 0")
        elif not is_cheap_pattern(key):
            said = "is a pattern that may be slow, and the engine would run it"
            fix = "write module names, or one plain pattern for each kind of module"
            yield Problem("pattern_unsafe", f"{field}[{quote(key)}]", said, fix)
    if sum(1 for key, _ in items if not is_plain(key)) > MAX_REGEXES:
        wanted = f"at most {MAX_REGEXES} patterns that are not plain module names"
        yield invalid(code, field, "more", wanted)


def _items(patterns: Any) -> list[tuple[str, Any]]:
    return list(patterns.items()) if isinstance(patterns, dict) else []


def is_rank(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 31


def is_alpha(value: Any) -> TypeGuard[float]:
    # Compared before any conversion: an int may be too large for a float.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= sys.float_info.max


def _too_large_rank(where: str, rank: int, limit: int) -> Problem:
    said = f"is {quote(str(rank))}, the limit is {limit}"
    return Problem("rank_too_large", where, said, "train with a smaller rank")


def _too_large_alpha(where: str, alpha: float) -> Problem:
    said = f"is {quote(str(alpha))}, the limit is {MAX_SCALE * MAX_RANK:g}"
    return Problem("scale_too_large", where, said, "train with an alpha of one to two times r")


def compile_suffix(pattern: str) -> re.Pattern[str]:
    """PEFT's own rule, which vLLM follows: a pattern is for the end of the module's name."""
    return re.compile(rf"(.*\.)?({pattern})$")


def is_plain(pattern: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_.^\\-]+", pattern) is not None


def is_cheap_pattern(pattern: str) -> bool:
    """Whether a regular expression is one of those that cannot take long on a module's name.

    At most two repeats, each of one character, and one group of alternatives: the work is at most
    alternatives x length squared. Anything else could stall the engine, which runs it again.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        return False
    kinds, position = [""], 0
    while token := PATTERN_TOKEN.match(pattern, position):
        kinds.append(token.lastgroup or "")
        position = token.end()
    repeats = [before for before, kind in pairwise(kinds) if kind == "repeat"]
    if position < len(pattern) or len(repeats) > 2 or any(k != "atom" for k in repeats):
        return False
    return kinds.count("open") <= 1 and _compiles(pattern)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
