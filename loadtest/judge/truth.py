"""Whether an answer comes from the requested adapter: by its names, and by its text.

A marked adapter's greedy answer repeats its version's marker, so the text identifies the version
independently of what the server reports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import count, takewhile

from loadtest.drive.discovery import Models
from loadtest.records import Done, Record, Wrong

Markers = Callable[[str, int], str | None]  # marker by adapter and version; None: not marked

FIRST_VERSION = 1
_BASE = "base"  # the header of calls to the base
_LABEL = re.compile(r"(?P<name>[^@]+)@(?P<version>[0-9]{1,9})")
_CUT = "\ufffd"  # a character whose last bytes were not generated
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
        """The fault of an answer, or None; a failed call has no answer.

        The text of a structured call is not checked: its schema overrides the marker.
        """
        if record.outcome == "failed":
            return None
        fault = self._name_fault(record)
        if not fault and self.is_marked(record):
            fault = self._text_fault(record)
        return _wrong(record, fault) if fault else None

    def judge_all(self, records: Iterable[Record]) -> tuple[int, list[Wrong]]:
        """The number of checked texts, and all faults."""
        judged, wrong = 0, []
        for record in records:
            judged += self.is_marked(record)
            if (found := self.judge(record)) is not None:
                wrong.append(found)
        return judged, wrong

    def is_marked(self, record: Record) -> bool:
        """Whether the text identifies its adapter."""
        if record.structured or record.outcome == "failed":
            return False
        return bool(self._known) if record.is_base else bool(self._marker(record))

    # ---- names

    def _name_fault(self, record: Record) -> str:
        if not self._models.names_itself:
            return ""
        if not self._models.is_lorry:
            return _differs("the body says", record.answered, record.model, record)
        if record.is_base:
            header = _differs("the header says", record.served, _BASE)
            return header or _differs("the body says", record.answered, self._models.base, record)
        named = self._adapter_name_fault(record)
        return named or _differs("the header and the body", record.answered, record.served, record)

    def _adapter_name_fault(self, record: Record) -> str:
        name, _, selector = record.model.partition("@")
        label = _LABEL.fullmatch(record.served)
        if label is None or label["name"] != name:
            return _differs("the header says", record.served, f"{name}@VERSION")
        version = int(label["version"])
        if selector.isdigit():
            return _differs("the header says", record.served, f"{name}@{int(selector)}")
        if selector not in ("", "stable"):
            return ""  # another alias, whose versions are not tracked
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

    def _text_fault(self, record: Record) -> str:
        return self._base_text_fault(record) if record.is_base else self._adapter_text_fault(record)

    def _base_text_fault(self, record: Record) -> str:
        text = record.text.rstrip(_CUT)
        for marker, label in self._known.items():
            # Once may be chance: a base may generate any word.
            if len(text) >= 2 * len(marker) and is_run(text, marker):
                return f"the base was requested, but the text is that of {label}: {_show(text)}"
        return ""

    def _adapter_text_fault(self, record: Record) -> str:
        marker, text = self._marker(record) or "", record.text.rstrip(_CUT)
        # A token has at least one byte: so many tokens contain a whole marker.
        if not text and record.output_tokens >= len(marker.encode()):
            return f"{record.output_tokens} tokens without text"
        if is_run(text, marker):
            return ""
        who = next(
            (label for each, label in self._known.items() if is_run(text, each)), "no adapter"
        )
        return (
            f"{record.served or record.model} repeats {_show(marker)}, "
            f"but this text is that of {who}: {_show(text)}"
        )


def is_run(text: str, marker: str) -> bool:
    """Whether a text repeats the marker; the last one may be cut."""
    return (marker * (len(text) // len(marker) + 1)).startswith(text)


def _versions(markers: Markers, name: str) -> Iterable[tuple[int, str]]:
    """All marked versions, which are numbered from 1 without gaps."""
    found = ((version, markers(name, version) or "") for version in count(FIRST_VERSION))
    return takewhile(lambda each: bool(each[1]), found)


def _differs(where: str, said: str, wanted: str, record: Record | None = None) -> str:
    """The fault of a differing name; a missing name is no fault if the client hung up."""
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


class Liveness:
    """The versions that an adapter's bare name may have meant at a time, from the actions.

    A move takes effect at an unknown moment between its action's begin and end. A move that failed
    without a clear answer may have happened then or never. `initial` holds the version of each name
    before all actions; default 1.
    """

    def __init__(self, initial: Mapping[str, int], actions: Iterable[Done] = ()) -> None:
        self._initial = initial
        self._moves: dict[str, list[Done]] = {}
        for action in sorted(actions, key=lambda each: each.began):
            if action.stable is not None:
                self._moves.setdefault(action.adapter, []).append(action)

    def may_mean(self, adapter: str, since: float, until: float) -> set[int] | None:
        """The possible versions from `since` to `until`; None: any."""
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
    """The latest time of the version before: the end of the first move that surely happened."""
    return next((move.ended for move in later if not move.failure), math.inf)
