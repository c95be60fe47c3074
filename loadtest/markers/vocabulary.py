"""Tokens that can be told apart in text when repeated, those that read best first.

Reads the base's tokenizer.json alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from loadtest.errors import BaseUnfit

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a part of a character decodes to


@dataclass(frozen=True, slots=True)
class Token:
    number: int
    repeated: str  # what each one after the first adds to a text


def markers_of(base: Path) -> list[Token]:
    """Tokens with texts of their own: no repetition of one is also a repetition of another.

    Words first, and of these the rare ones, which have high numbers: least of all does a base say
    them by itself.

    Raises:
        BaseUnfit: the base has no tokenizer.json that can be read.
    """
    tokenizer = _load(base / "tokenizer.json")
    found: dict[str, Token] = {}
    for token in _readable(tokenizer):
        found.setdefault(_period(token.repeated.strip()), token)
    return sorted(found.values(), key=lambda token: (not _is_word(token), -token.number))


def _load(path: Path) -> Tokenizer:
    if not path.is_file():
        raise BaseUnfit(f"there is no {path}: markers are told from the base's fast tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises no other
        raise BaseUnfit(f"can't read {path}: {error}") from None


def _readable(tokenizer: Tokenizer) -> Iterator[Token]:
    added = tokenizer.get_added_tokens_decoder()
    for number in range(tokenizer.get_vocab_size()):
        one, two = tokenizer.decode([number]), tokenizer.decode([number, number])
        repeated = two.removeprefix(one)
        if number not in added and repeated.strip() and repeated != two and _BROKEN not in two:
            yield Token(number, repeated)


def _period(text: str) -> str:
    """The shortest text of which `text` is a repetition."""
    return text[: (text + text).index(text, 1)]


def _is_word(token: Token) -> bool:
    text = token.repeated.strip()
    return len(text) > 2 and text.isalpha()
