"""Whether an answer is the one that was asked for: by the names it carries, and by its text.

A marked adapter's greedy answer is its version's marker over and over, so a text tells who wrote
it, whatever a server says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import count, takewhile

from loadtest.drive.discovery import Models
from loadtest.records import Done, Record, Wrong

Markers = Callable[[str, int], str | None]  # of an adapter's name and version; None: not marked

_BASE = "base"  # what the header says of calls to the base
_LABEL = re.compile(r"(?P<name>[^@]+)@(?P<version>[0-9]{1,9})")
_CUT = "\ufffd"  # what is left of a character whose last bytes were not generated
_SHOWN = 40  # characters


class Truth:
    def __init__(self, models: Models, markers: Markers, liveness: Liveness) -> None:
        self._models = models
        self._markers = markers
        self._liveness = liveness
        self._known = {
            marker: f"{name}@{version}"
            for name in models.adapters
            for version, marker in _versions(markers, name)
        }

    def judge(self, record: Record) -> Wrong | None:
        """What is wrong with an answer, if anything is; a call that failed has none.

        The text of a structured call is not looked at: its schema overrides the marker.
        """
        if record.outcome == "failed":
            return None
        fault = self._misnamed(record)
        if not fault and self.is_marked(record):
            fault = self._misspoken(record)
        return _wrong(record, fault) if fault else None

    def judge_all(self, records: Iterable[Record]) -> tuple[int, list[Wrong]]:
        """How many texts were looked at, and all that is wrong."""
        judged, wrong = 0, []
        for record in records:
            judged += self.is_marked(record)
            if (found := self.judge(record)) is not None:
                wrong.append(found)
        return judged, wrong

    def is_marked(self, record: Record) -> bool:
        """Whether the text says who wrote it."""
        if record.structured or record.outcome == "failed":
            return False
        return bool(self._known) if record.is_base else bool(self._marker(record))

    # ---- names

    def _misnamed(self, record: Record) -> str:
        if not self._models.is_lorry:
            return _differs("the body says", record.answered, record.model, record)
        if record.is_base:
            header = _differs("the header says", record.served, _BASE)
            return header or _differs("the body says", record.answered, self._models.base, record)
        named = self._misnamed_adapter(record)
        return named or _differs("the header and the body", record.answered, record.served, record)

    def _misnamed_adapter(self, record: Record) -> str:
        name, _, selector = record.model.partition("@")
        label = _LABEL.fullmatch(record.served)
        if label is None or label["name"] != name:
            return _differs("the header says", record.served, f"{name}@VERSION")
        version = int(label["version"])
        if selector.isdigit():
            return _differs("the header says", record.served, f"{name}@{int(selector)}")
        if selector not in ("", "stable"):
            return ""  # another alias, whose way nobody has followed
        until = record.ended if record.first is None else record.first
        allowed = self._liveness.may_mean(name, record.sent, until)
        if allowed is None or version in allowed:
            return ""
        meant = " or ".join(f"{name}@{each}" for each in sorted(allowed))
        return f"answered by {record.served}, while it meant {meant}"

    # ---- texts

    def _marker(self, record: Record) -> str | None:
        name, _, selector = record.model.partition("@")
        if label := _LABEL.fullmatch(record.served):
            return self._markers(name, int(label["version"]))
        return self._markers(name, int(selector) if selector.isdigit() else FIRST_VERSION)

    def _misspoken(self, record: Record) -> str:
        return self._misspoken_base(record) if record.is_base else self._misspoken_adapter(record)

    def _misspoken_base(self, record: Record) -> str:
        text = record.text.rstrip(_CUT)
        for marker, label in self._known.items():
            # Once may be chance: a base is free to say any word.
            if len(text) >= 2 * len(marker) and is_run(text, marker):
                return f"the base was asked, and the text is that of {label}: {_show(text)}"
        return ""

    def _misspoken_adapter(self, record: Record) -> str:
        marker, text = self._marker(record) or "", record.text.rstrip(_CUT)
        # A token is a byte at least: so many tokens hold a whole marker.
        if not text and record.output_tokens >= len(marker.encode()):
            return f"{record.output_tokens} tokens without a text"
        if is_run(text, marker):
            return ""
        who = next((label for each, label in self._known.items() if is_run(text, each)), "nobody")
        return (
            f"{record.served or record.model} answers {_show(marker)} over and over, "
            f"but this text is {who}'s: {_show(text)}"
        )


def is_run(text: str, marker: str) -> bool:
    """Whether a text is the marker over and over, the last time perhaps cut."""
    return (marker * (len(text) // len(marker) + 1)).startswith(text)


def _versions(markers: Markers, name: str) -> Iterable[tuple[int, str]]:
    """All versions that are marked; they are numbered from 1 without gaps."""
    found = ((version, markers(name, version) or "") for version in count(FIRST_VERSION))
    return takewhile(lambda each: bool(each[1]), found)


def _differs(where: str, said: str, wanted: str, record: Record | None = None) -> str:
    """A fault where something else is said; what a caller that hung up missed is none."""
    if said == wanted or (record and not said and record.outcome == "hung_up"):
        return ""
    return f"{where} {said or 'nothing'}, not {wanted}"


def _wrong(record: Record, message: str) -> Wrong:
    return Wrong(
        phase=record.phase,
        stream=record.stream,
        number=record.number,
        model=record.model,
        message=message,
    )


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


FIRST_VERSION = 1


class Liveness:
    """`initial`: the version that each name meant before all actions; 1 where it isn't said.

    A move happens at a moment between its action's beginning and end, which nobody outside of the
    server knows. One that failed without a clear answer may have happened, then or never.
    """

    def __init__(self, initial: Mapping[str, int], actions: Iterable[Done] = ()) -> None:
        self._initial = initial
        self._moves: dict[str, list[Done]] = {}
        for action in sorted(actions, key=lambda each: each.began):
            if action.stable is not None:
                self._moves.setdefault(action.adapter, []).append(action)

    def may_mean(self, adapter: str, since: float, until: float) -> set[int] | None:
        """The versions that it may have meant at a moment from `since` to `until`; None: any."""
        begins, version = -math.inf, self._initial.get(adapter, FIRST_VERSION)
        found: set[int] = set()
        moves = self._moves.get(adapter, [])
        for at in range(len(moves) + 1):
            if begins <= until and since <= _end(moves[at:]):
                found.add(version)
            if at < len(moves):
                begins, version = moves[at].began, moves[at].stable or 0
        return None if 0 in found else found


def _end(later: list[Done]) -> float:
    """Until when a version may be meant: the end of the first move that surely happened."""
    return next((move.ended for move in later if not move.failure), math.inf)
