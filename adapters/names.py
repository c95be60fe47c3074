"""The grammar of adapter names: NAME[@VERSION|@ALIAS|@sha256:PREFIX].

Knows nothing of which names exist. The length of a caller's text is checked before any pattern
runs on it, and every pattern here runs in linear time.
"""

import itertools
import re
import string
from collections.abc import Iterator, Set
from dataclasses import dataclass

from adapters.errors import BadName, BadReference, quote

STABLE = "stable"
MAX_NAME = 128
MAX_METRIC = 200
MAX_ALIAS = 64
MAX_BASE = 512
MAX_VERSION = 999_999_999
MAX_REFERENCE = MAX_NAME + 1 + len("sha256:") + 64

MAX_MISSPELT = 64
LETTERS = string.ascii_lowercase + string.digits + "-_." + string.ascii_uppercase

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
DIGEST = re.compile(r"sha256:([0-9a-f]{6,64})")

GRAMMAR = "write NAME, NAME@VERSION, NAME@ALIAS or NAME@sha256:PREFIX (6 to 64 hex digits)"

# vLLM would send a base-model chat to an adapter whose name is the part before "_" of the content
# type of a message; and "base" stands for the base model in metrics and headers.
CONTENT_KINDS = frozenset(
    {
        "audio",
        "file",
        "image",
        "input",
        "output",
        "prompt",
        "refusal",
        "text",
        "thinking",
        "tool",
        "video",
    }
)
CONTENT_TYPES = frozenset(
    {
        "audio_embeds",
        "audio_url",
        "image_embeds",
        "image_pil",
        "image_url",
        "input_audio",
        "input_file",
        "input_image",
        "input_text",
        "output_text",
        "prompt_embeds",
        "tool_reference",
        "video_embeds",
        "video_url",
    }
)
RESERVED_NAMES = CONTENT_KINDS | CONTENT_TYPES | {"base"}


@dataclass(frozen=True, slots=True)
class DigestPrefix:
    """The first hex digits of a version's digest."""

    hex: str

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


Selector = int | str | DigestPrefix | None


@dataclass(frozen=True, slots=True)
class Reference:
    """A name, and a selector: a version number, an alias, a digest prefix, or None for `stable`."""

    name: str
    selector: Selector = None

    def __str__(self) -> str:
        return self.name if self.selector is None else f"{self.name}@{self.selector}"


def parse_reference(text: str) -> Reference:
    """Read a reference; raises BadReference."""
    if len(text) > MAX_REFERENCE:
        raise BadReference(f"a reference of {len(text)} characters is too long", GRAMMAR)
    name, at, rest = text.partition("@")
    if not NAME.fullmatch(name):
        raise BadReference(f"{quote(text)} does not begin with an adapter's name", GRAMMAR)
    return Reference(name, _parse_selector(text, rest) if at else None)


def _parse_selector(text: str, rest: str) -> Selector:
    if VERSION.fullmatch(rest):
        return int(rest)
    if digest := DIGEST.fullmatch(rest):
        return DigestPrefix(digest[1])
    if ALIAS.fullmatch(rest) and not rest.isdigit():
        return rest
    raise BadReference(f"{quote(text)} names no version, alias or digest after the @", GRAMMAR)


def nearest(name: str, names: Set[str]) -> str | None:
    """One of `names` that differs from `name` by one typing error, or in case or separators.

    Takes under a millisecond for a name of usual length, however many names there are.
    """
    if len(name) > MAX_MISSPELT:
        return None
    lower = name.lower()
    spelt = dict.fromkeys((lower, lower.replace("_", "-"), lower.replace("-", "_")))
    for candidate in itertools.chain(spelt, _edits(name), _edits(lower)):
        if candidate != name and candidate in names:
            return candidate
    return None


def _edits(name: str) -> Iterator[str]:
    """Every text at one typing error's distance: two letters swapped, one lost, wrong or added."""
    splits = [(name[:at], name[at:]) for at in range(len(name) + 1)]
    for head, tail in splits:
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        if tail:
            yield head + tail[1:]
    for letter in LETTERS:
        for head, tail in splits:
            yield head + letter + tail
            if tail:
                yield head + letter + tail[1:]


def check_publishable_name(name: str) -> None:
    """Raise BadName unless a new adapter may have this name."""
    if not NAME.fullmatch(name):
        raise BadName(
            f"{quote(name)} cannot name an adapter",
            f"use 1 to {MAX_NAME} letters, digits, dots, dashes and underscores,"
            " beginning with a letter or digit",
        )
    if name.lower() in RESERVED_NAMES:
        raise BadName(f"the name {name!r} is reserved", "choose another name")


def check_alias(alias: str) -> None:
    """Raise BadName unless an alias may have this name."""
    if not ALIAS.fullmatch(alias) or alias.isdigit():
        raise BadName(
            f"{quote(alias)} cannot be an alias",
            f"use 1 to {MAX_ALIAS} letters, digits, dots, dashes and underscores,"
            " beginning with a letter or digit, and not digits alone (those are versions)",
        )


def check_base_name(name: str | None) -> None:
    """Raise BadName unless the catalog may record a base by this name."""
    if name is not None and (not name.isprintable() or not 0 < len(name) <= MAX_BASE):
        raise BadName(
            f"{quote(name)} cannot name a base",
            f"use 1 to {MAX_BASE} characters that can be printed",
        )
