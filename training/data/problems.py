"""What is wrong with a data set and where: one cause is one problem, with its lines and a count."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

SHOWN_PLACES: Final = 20
SHOWN_CAUSES: Final = 20


class Place(NamedTuple):
    """A line of a text file, or a row of a table; number 0 is the file as a whole."""

    source: str
    number: int
    unit: str = "line"


class Problems:
    """Problems by source and cause, in order of their first place."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[Place]] = {}

    def add(self, cause: str, place: Place) -> None:
        self._places.setdefault((place.source, cause), []).append(place)

    def __bool__(self) -> bool:
        return bool(self._places)

    def __iter__(self) -> Iterator[str]:
        """One sentence for each cause in each source, as `a.jsonl: lines 2 and 5: not JSON`."""
        for (_, cause), places in self._places.items():
            yield f"{name_places(places)}: {cause}"

    def __str__(self) -> str:
        """The first twenty on one line; a source is named once."""
        told: list[str] = []
        before = None
        for (source, cause), places in list(self._places.items())[:SHOWN_CAUSES]:
            numbers = name_numbers(places)
            head = "" if source == before else f"{source}: "
            told.append(head + (f"{numbers}: {cause}" if numbers else cause))
            before = source
        left = len(self._places) - len(told)
        return " | ".join(told + [f"and {left:,} more"] * bool(left))

    def facts(self) -> list[dict[str, Any]]:
        """The same for a program; `numbers` holds the first twenty."""
        return [
            {
                "source": source,
                "cause": cause,
                "count": len(places),
                "unit": places[0].unit,
                "numbers": [place.number for place in places[:SHOWN_PLACES] if place.number],
            }
            for (source, cause), places in self._places.items()
        ]


def name_places(places: Iterable[Place]) -> str:
    """`a.jsonl: lines 2 and 5; b.csv: line 3`."""
    by_source: dict[str, list[Place]] = {}
    for place in places:
        by_source.setdefault(place.source, []).append(place)
    return "; ".join(
        f"{source}: {numbers}" if (numbers := name_numbers(found)) else source
        for source, found in by_source.items()
    )


def name_numbers(places: list[Place]) -> str:
    """`line 2`, `lines 2, 3 and 5`, or the first twenty and a count; "" for a whole file."""
    numbers = list(dict.fromkeys(place.number for place in places if place.number))
    if not numbers:
        return ""
    unit = places[0].unit
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    shown = [str(number) for number in numbers[:SHOWN_PLACES]]
    left = len(numbers) - len(shown)
    last = f"{left:,} more" if left else shown.pop()
    return f"{unit}s {', '.join(shown)} and {last}"
