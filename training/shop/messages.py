"""A customer's message about an order that went wrong, and the many ways to write it."""

import random
from dataclasses import dataclass

from training.shop import lexicon as words
from training.shop.orders import pluralize
from training.shop.splits import Pair, Split, sample_pairs


@dataclass(frozen=True, slots=True)
class Message:
    """A sender, an order with its pieces, and the problem."""

    name: str | None
    reference: str
    pieces: tuple[Pair, ...]
    problem: str


def sample_message(rng: random.Random, split: Split) -> Message:
    """Draw a message; every field is independent of the others."""
    letter = rng.choice(words.REFERENCE_LETTERS)
    return Message(
        name=rng.choice(words.NAMES) if rng.random() < 0.6 else None,
        reference=f"{letter}{rng.randrange(10, 100)}",
        pieces=tuple(sample_pairs(rng, rng.choice((1, 1, 2)), split)),
        problem=rng.choice(tuple(words.PROBLEMS)),
    )


def write_message(rng: random.Random, message: Message) -> str:
    """Write a message down the way a customer might."""
    pieces = _write_pieces(rng, message.pieces)
    problem = rng.choice(words.PROBLEMS[message.problem])
    reference = message.reference
    subject = rng.choice(
        (
            f"my order {reference} with the {pieces} {problem}",
            f"order {reference} ({pieces}) {problem}",
            f"order {reference}, the {pieces}, {problem}",
            f"I ordered the {pieces}, number {reference}, and it {problem}",
            f"about the {pieces}: order {reference} {problem}",
        )
    )
    text = _introduce(rng, message.name, subject + rng.choice(words.FAREWELLS))
    return text[0].upper() + text[1:] if rng.random() < 0.2 else text


def _write_pieces(rng: random.Random, pieces: tuple[Pair, ...]) -> str:
    written = [f"{style} {pluralize(noun, rng.choice((1, 2)))}" for style, noun in pieces]
    return " and the ".join(written) if rng.random() < 0.3 else " and ".join(written)


def _introduce(rng: random.Random, name: str | None, subject: str) -> str:
    greeting = f"{rng.choice(words.GREETINGS)}, " if rng.random() < 0.6 else ""
    if name is None:
        return greeting + subject
    form = rng.random()
    if form < 0.4:
        return f"{greeting}this is {name}, {subject}"
    if form < 0.7:
        return f"{greeting}{name} here, {subject}"
    return f"{greeting}{subject} best wishes, {name}"
