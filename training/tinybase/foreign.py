"""Records of other domains with an explicit instruction that gives the keys or columns.

From these the base learns what JSON and SQL look like and how to fill a form, while the shop's own
formats stay unseen: keys, table and columns are named in each prompt and drawn anew each time.
"""

import json
import random
from dataclasses import dataclass
from typing import Final

from training.shop.lexicon import CITIES, CONNECTIVES, DAYS, NUMBERS


@dataclass(frozen=True, slots=True)
class Domain:
    """A field of life that is not the shop."""

    kinds: tuple[str, ...]
    things: tuple[str, ...]
    requests: tuple[str, ...]
    # Two yes-or-no facts: the name of each and the ways to state it.
    flags: tuple[tuple[str, tuple[str, ...]], ...]


DOMAINS: Final = (
    Domain(
        ("old", "young", "tall", "small", "wild", "spotted", "hungry", "sleepy"),
        ("lion", "tiger", "bear", "camel", "zebra", "monkey", "parrot", "snake", "goat", "horse"),
        ("the zoo sends", "move", "we bring", "please take"),
        (
            ("fed", ("already fed", "with food", "fed well")),
            ("caged", ("in a cage", "caged", "behind bars")),
        ),
    ),
    Domain(
        ("rare", "thin", "heavy", "new", "famous", "signed", "dusty", "illustrated"),
        ("book", "map", "novel", "journal", "magazine", "poem", "comic", "letter", "score", "film"),
        ("the library lends", "reserve", "can I borrow", "please keep"),
        (
            ("digital", ("as a file", "digital", "on the tablet")),
            ("renewed", ("renewed", "for a second time", "once again")),
        ),
    ),
    Domain(
        ("fresh", "ripe", "sweet", "frozen", "dried", "sour", "cheap", "local"),
        ("apple", "pear", "melon", "lemon", "carrot", "onion", "pepper", "egg", "bean", "plum"),
        ("the market sells", "bring", "cook", "we harvest"),
        (
            ("washed", ("washed", "clean", "without dirt")),
            ("bagged", ("in a bag", "bagged", "with a bag")),
        ),
    ),
    Domain(
        ("fast", "slow", "electric", "empty", "full", "late", "early", "cold"),
        ("truck", "van", "car", "tram", "train", "boat", "plane", "bike", "wagon", "flight"),
        ("the station has", "there will be", "drive", "we hire"),
        (
            ("insured", ("insured", "with insurance", "fully covered")),
            ("returning", ("and back", "with return", "both ways")),
        ),
    ),
)
KEY_POOLS: Final = (
    ("count", "number", "amount", "n", "total", "pieces"),
    ("kind", "type", "look", "sort", "quality"),
    ("name", "thing", "what", "label", "subject"),
    ("place", "town", "target", "where", "location"),
    ("date", "time", "when", "due", "weekday"),
)
LIST_KEYS: Final = ("rows", "entries", "list", "parts", "things", "records")
TABLES: Final = ("plan", "stock", "trips", "records", "entries", "journal", "log", "list")


@dataclass(frozen=True, slots=True)
class Record:
    """Counted things with a place, maybe a day, and two yes-or-no facts."""

    domain: Domain
    rows: tuple[tuple[int, str, str], ...]
    place: str
    day: str | None
    facts: tuple[bool, bool]


def write_exercise(rng: random.Random) -> tuple[str, str]:
    """Draw a record and one way of asking for it; return the prompt and its answer."""
    domain = rng.choice(DOMAINS)
    record = Record(
        domain=domain,
        rows=tuple(
            (
                rng.choice((1, rng.randint(2, 9))),
                rng.choice(domain.kinds),
                rng.choice(domain.things),
            )
            for _ in range(rng.choice((1, 2, 2, 3)))
        ),
        place=rng.choice(CITIES),
        day=rng.choice(DAYS) if rng.random() < 0.7 else None,
        facts=(rng.random() < 0.4, rng.random() < 0.4),
    )
    ask = rng.choice((_ask_json, _ask_json, _ask_sql, _ask_sql, _ask_plain))
    instruction, answer = ask(rng, record)
    text = _describe(rng, record)
    if rng.random() < 0.8:
        return f"{instruction}\n{text}", answer
    return f"{text}\n{instruction}", answer


def _ask_json(rng: random.Random, record: Record) -> tuple[str, str]:
    keys = [rng.choice(pool) for pool in KEY_POOLS]
    list_key = rng.choice(LIST_KEYS)
    flags = [name for name, _ in record.domain.flags]
    document = {
        list_key: [dict(zip(keys[:3], row, strict=True)) for row in record.rows],
        keys[3]: record.place,
        keys[4]: record.day,
        **dict(zip(flags, record.facts, strict=True)),
    }
    named = f"{list_key} ({', '.join(keys[:3])}), {', '.join((*keys[3:], *flags))}"
    return f"Write as JSON with {named}.", json.dumps(document, separators=(",", ":"))


def _ask_sql(rng: random.Random, record: Record) -> tuple[str, str]:
    columns = [rng.choice(pool) for pool in KEY_POOLS] + [name for name, _ in record.domain.flags]
    table = rng.choice(TABLES)
    day = f"'{record.day}'" if record.day else "NULL"
    tail = f"'{record.place}', {day}, {int(record.facts[0])}, {int(record.facts[1])}"
    rows = ", ".join(
        f"({count}, '{kind}', '{thing}', {tail})" for count, kind, thing in record.rows
    )
    named = ", ".join(columns)
    return (
        f"Write as SQL for {table} ({named}).",
        f"INSERT INTO {table} ({named}) VALUES {rows};",
    )


def _ask_plain(rng: random.Random, record: Record) -> tuple[str, str]:
    heading = rng.choice(("List", "Summary", "Plan"))
    rows = ", ".join(f"{count} {kind} {thing}" for count, kind, thing in record.rows)
    facts = " ".join(
        f"{name}: {'yes' if fact else 'no'}."
        for (name, _), fact in zip(record.domain.flags, record.facts, strict=True)
    )
    return (
        f"Write as {heading}.",
        f"{heading}: {rows}. {record.place}, {record.day or 'any day'}. {facts}",
    )


def _describe(rng: random.Random, record: Record) -> str:
    text = ""
    for count, kind, thing in record.rows:
        number = str(count) if rng.random() < 0.4 else NUMBERS[count - 1]
        plural = "" if count == 1 else "s"
        text += (rng.choice(CONNECTIVES) if text else "") + f"{number} {kind} {thing}{plural}"
    parts = [f"{rng.choice(('to', 'in', 'near'))} {record.place}"]
    if record.day:
        parts.append(f"{rng.choice(('by', 'on', 'before', 'until'))} {record.day}")
    parts += [
        rng.choice(ways)
        for (_, ways), fact in zip(record.domain.flags, record.facts, strict=True)
        if fact
    ]
    rng.shuffle(parts)
    request = f"{rng.choice(record.domain.requests)} " if rng.random() < 0.7 else ""
    return request + rng.choice((", ", " ")).join((text, *parts))
