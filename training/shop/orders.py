"""An order, and the many ways in which a customer may write it."""

import random
from dataclasses import dataclass

from training.shop import lexicon as words
from training.shop.splits import Split, sample_pairs


@dataclass(frozen=True, slots=True)
class Line:
    """Some pieces of one kind."""

    quantity: int
    style: str
    noun: str


@dataclass(frozen=True, slots=True)
class Order:
    """Lines, destination, day and extras."""

    lines: tuple[Line, ...]
    city: str
    day: str | None
    gift: bool
    express: bool


def sample_order(rng: random.Random, split: Split) -> Order:
    """Draw an order; every field is independent of the others."""
    pairs = sample_pairs(rng, rng.choice((1, 1, 2, 2, 3)), split)
    quantities = [rng.choice((1, 1, rng.randint(2, 9))) for _ in pairs]
    return Order(
        lines=tuple(Line(q, *pair) for q, pair in zip(quantities, pairs, strict=True)),
        city=rng.choice(words.CITIES),
        day=rng.choice(words.DAYS) if rng.random() < 0.7 else None,
        gift=rng.random() < 0.4,
        express=rng.random() < 0.35,
    )


def write_order(rng: random.Random, order: Order) -> str:
    """Write an order down the way a customer might."""
    lines = _join_lines(rng, [_write_line(rng, line) for line in order.lines])
    delivery = _write_delivery(rng, order)
    extras = _write_extras(rng, order)
    separator = rng.choice((", ", ", ", " "))
    layout = rng.random()
    if layout < 0.65:
        body = _open(rng) + separator.join((lines, *delivery, *extras))
    elif layout < 0.85:
        body = f"{' '.join(delivery)}: {', '.join((lines, *extras))}"
    else:
        body = f"{', '.join((*extras, *delivery))}: {lines}"
    text = body + rng.choice(words.CLOSINGS)
    return text[0].upper() + text[1:] if rng.random() < 0.2 else text


def pluralize(noun: str, quantity: int) -> str:
    """The noun's form for this quantity."""
    return noun if quantity == 1 else f"{noun}s"


def _write_line(rng: random.Random, line: Line) -> str:
    noun = pluralize(line.noun, line.quantity)
    form = rng.random()
    if form < 0.12:
        return f"{line.quantity}x {line.style} {line.noun}"
    if form < 0.27:
        return f"{_write_quantity(rng, line.quantity, noun)} {noun} in {line.style}"
    return f"{_write_quantity(rng, line.quantity, line.style)} {line.style} {noun}"


def _write_quantity(rng: random.Random, quantity: int, following: str) -> str:
    if quantity == 1 and rng.random() < 0.5:
        return "an" if following[0] in "aeiou" else "a"
    return str(quantity) if rng.random() < 0.35 else words.NUMBERS[quantity - 1]


def _join_lines(rng: random.Random, lines: list[str]) -> str:
    text = lines[0]
    for line in lines[1:]:
        text += rng.choice(words.CONNECTIVES) + line
    return text


def _write_delivery(rng: random.Random, order: Order) -> list[str]:
    place = rng.choice(words.PLACES).format(order.city)
    if order.day is None:
        return [place]
    time = rng.choice(words.TIMES).format(order.day)
    both = [place, time] if rng.random() < 0.7 else [time, place]
    return [" ".join(both)] if rng.random() < 0.7 else both


def _write_extras(rng: random.Random, order: Order) -> list[str]:
    extras = [rng.choice(words.GIFTS)] if order.gift else []
    if order.express:
        extras.append(rng.choice(words.RUSHES))
    rng.shuffle(extras)
    return extras


def _open(rng: random.Random) -> str:
    greeting = f"{rng.choice(words.GREETINGS)}, " if rng.random() < 0.3 else ""
    request = f"{rng.choice(words.REQUESTS)} " if rng.random() < 0.6 else ""
    return greeting + request
