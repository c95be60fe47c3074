"""Sums of adapters: REF[*WEIGHT]+REF[*WEIGHT]..., such as `orders@1*0.7+tone@stable*0.5`.

A part is a reference as everywhere (names.py), a weight a decimal from -4 to 4, and 1 where none is
given; spaces around both are allowed. Once its parts are resolved a sum is a virtual version: it
has a label (its canonical form), a digest and a rank, and no number. Knows nothing of files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Any

from adapters.catalog.versions import CHAT_FORM, AdapterVersion
from adapters.errors import SumInvalid, quote

MAX_PARTS = 8
MAX_WEIGHT = Decimal(4)
MAX_SUM = 2048  # characters; the longest references and weights of eight parts have 1,800
WEIGHT = re.compile(r"-?[0-9]{1,4}(?:\.[0-9]{0,20})?|-?\.[0-9]{1,20}", re.ASCII)

GRAMMAR = "write NAME*WEIGHT+NAME*WEIGHT, such as orders@1*0.7+tone*0.5, with weights from -4 to 4"


@dataclass(frozen=True, slots=True)
class Term:
    """A part as it is written: a reference, which need not be one, and its weight."""

    reference: str
    weight: Decimal


@dataclass(frozen=True, slots=True)
class Part:
    """One version of a sum, and its weight."""

    version: AdapterVersion
    weight: Decimal

    @property
    def text(self) -> str:
        return self.version.label + ("" if self.weight == 1 else f"*{_plain(self.weight)}")

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document."""
        return {
            "label": self.version.label,
            "digest": self.version.digest,
            "weight": float(self.weight),
        }


@dataclass(frozen=True, slots=True)
class AdapterSum(AdapterVersion):
    """A sum as a version: `name` and label are the canonical form, `version` is 0.

    `parts` are in the order of their labels; each is of another version, and no weight is 0.
    """

    parts: tuple[Part, ...]

    @property
    def label(self) -> str:
        return self.name

    @property
    def stacked(self) -> list[Part]:
        """The parts in the order of their digests: the same bytes are the same sum."""
        return sorted(self.parts, key=lambda part: (part.version.digest, part.weight))


def is_sum(text: str) -> bool:
    """Whether a model's name or a label is a sum's: no other has these characters."""
    return "*" in text or "+" in text


def parts_of(version: AdapterVersion | None) -> tuple[Part, ...]:
    """The parts of a sum; none of any other version."""
    return version.parts if isinstance(version, AdapterSum) else ()


def part_labels(label: str) -> list[str]:
    """The labels of the versions that a label stands for: of a sum, those of its parts."""
    return [part.partition("*")[0] for part in label.split("+")]


def parse_sum(text: str) -> list[Term]:
    """Read a sum; whether its references mean anything is for others to say. Raises SumInvalid."""
    if len(text) > MAX_SUM:
        raise SumInvalid(f"a sum of {len(text)} characters is too long", GRAMMAR)
    written = text.split("+")
    if len(written) > MAX_PARTS:
        over = quote(written[MAX_PARTS].strip())
        said = f"a sum has at most {MAX_PARTS} parts, and {over} is one too many of {len(written)}"
        raise SumInvalid(said, "leave parts out, or compose some of them into one adapter")
    return [_parse_part(part) for part in written]


def _parse_part(written: str) -> Term:
    reference, times, weight = (each.strip() for each in written.partition("*"))
    if not reference:
        raise SumInvalid(f"the part {quote(written)} of the sum names no adapter", GRAMMAR)
    if not times:
        return Term(reference, Decimal(1))
    if not WEIGHT.fullmatch(weight):
        raise SumInvalid(f"the weight {quote(weight)} of {quote(reference)} is no decimal", GRAMMAR)
    return Term(reference, _check_weight(reference, Decimal(weight)))


def _check_weight(reference: str, weight: Decimal) -> Decimal:
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
        said = f"the weight {_plain(weight)} of {quote(reference)} is not from -4 to 4"
        raise SumInvalid(said, "give a smaller one")
    return weight


def add_up(parts: Iterable[Part]) -> AdapterVersion | None:
    """What a sum comes to: a version, a part itself if that is all there is, or None, the base.

    Parts of one version are one part. A part of weight 0 adds nothing and counts for nothing.
    Raises SumInvalid: weights that are too large together, or parts that are asked in other forms.
    """
    merged: dict[str, Part] = {}
    for part in parts:
        label = part.version.label
        before = merged[label].weight if label in merged else Decimal(0)
        merged[label] = Part(part.version, _check_weight(label, before + part.weight))
    kept = [part for part in merged.values() if part.weight]
    if not kept:
        return None
    if len(kept) == 1 and kept[0].weight == 1:
        return kept[0].version
    kept.sort(key=lambda part: (part.version.name, part.version.version))
    return _as_version(tuple(kept))


def _as_version(parts: tuple[Part, ...]) -> AdapterSum:
    first, versions = parts[0].version, [part.version for part in parts]
    return AdapterSum(
        name="+".join(part.text for part in parts),
        version=0,
        digest=digest_of(parts),
        rank=sum(each.rank for each in versions),
        alpha=float(sum(each.rank for each in versions)),  # weights and scales are in the B's
        base=first.base,
        base_digest=first.base_digest,
        size_bytes=sum(each.size_bytes for each in versions),
        created_at=max(each.created_at for each in versions),
        pinned=False,
        aliases=(),
        weight=min(each.weight for each in versions),  # or a light part would lend a heavy one's
        gate=None,
        provenance=_shared_form(versions),
        parts=parts,
    )


def digest_of(parts: Iterable[Part]) -> str:
    """The digest of a sum: of its parts' digests and weights, whatever their names and order.

    It is "sha256:" + sha256 of one line "<digest>*<weight>\\n" a part, sorted: `printf '%s\\n'
    sha256:...*0.7 sha256:...*0.5 | LC_ALL=C sort | sha256sum` prints the same.
    """
    lines = sorted(f"{part.version.digest}*{_plain(part.weight)}\n" for part in parts)
    return f"sha256:{sha256(''.join(lines).encode()).hexdigest()}"


def _shared_form(versions: list[AdapterVersion]) -> dict[str, Any] | None:
    """The provenance of a sum: the chat form that all parts have. Raises SumInvalid."""
    first = versions[0]
    for other in versions[1:]:
        if _form_digest(other) != _form_digest(first):
            said = (
                f"the parts {first.label} and {other.label} are asked in different chat templates"
            )
            fix = "leave one of them out, or publish one without its own template"
            raise SumInvalid(f"{said}, so one prompt can't be right for their sum", fix)
    return None if first.chat_form is None else {CHAT_FORM: first.chat_form}


def _form_digest(version: AdapterVersion) -> Any:
    return None if version.chat_form is None else version.chat_form.get("sha256")


def _plain(weight: Decimal) -> str:
    """The shortest text of a weight: 0.5, -1, 2."""
    return format(weight.normalize(), "f")
