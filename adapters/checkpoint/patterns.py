"""PEFT's patterns for module names: which are safe to run, and what they match.

An adapter's author writes them and the engine runs them again, so only those run anywhere that
are too simple to be slow. Knows nothing of ranks and scales.
"""

import re
from itertools import pairwise

MAX_PATTERN_LENGTH = 256

PATTERN_TOKEN = re.compile(
    r"(?P<repeat>[*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})"
    r"|(?P<open>\((?:\?:)?)"
    r"|(?P<close>\))"
    r"|(?P<bar>\|)"
    r"|(?P<atom>\\[.dw_-]|\[\^?[A-Za-z0-9_.-]{1,64}\]|[A-Za-z0-9_.^$-])"
)


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
