"""A data set: all examples of its sources, what is wrong with them, and what two sets share.

Knows nothing about tokenizers or torch.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from training.data.forms import Example, parse_record
from training.data.problems import Place, Problems, name_places
from training.data.reading import read_records
from training.data.turns import Malformed
from training.errors import DataInvalid

FEW: Final = 500
TOO_FEW: Final = 200


@dataclass(slots=True)
class DataSet:
    """The examples of one or several sources; `unused` counts the records with such a column."""

    sources: tuple[str, ...]
    examples: list[Example] = field(default_factory=list)
    records: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)

    @property
    def is_chat(self) -> bool:
        return any(isinstance(example.prompt, list) for example in self.examples)

    def digest(self) -> str:
        """Hash what is learnt: the same examples have one digest, whatever file holds them."""
        hashed = hashlib.sha256()
        for example in self.examples:
            hashed.update(f"{_key(example, with_completion=True)}\n".encode())
        return f"sha256:{hashed.hexdigest()}"

    def repeats(self) -> list[Place]:
        """The places of examples that an earlier example equals."""
        seen: set[str] = set()
        places = []
        for example in self.examples:
            key = _key(example, with_completion=True)
            if key in seen:
                places.append(example.place)
            seen.add(key)
        return places

    def warnings(self) -> list[str]:
        """What is worth saying about a set that can be learnt."""
        said = [warning] if (warning := size_warning(len(self.examples))) else []
        if repeats := self.repeats():
            said.append(
                f"warning: {len(repeats):,} of {len(self.examples):,} examples repeat an earlier "
                f"one: {name_places(repeats)}"
            )
        if self.unused:
            columns = ", ".join(f"{name} ({count:,})" for name, count in self.unused.most_common())
            said.append(f"not learnt: {columns}")
        return said


def inspect_set(sources: Sequence[str], method: str = "sft") -> DataSet:
    """Read a set; every assistant turn of a chat becomes one example. Collects the problems."""
    found = DataSet(tuple(sources))
    for source in sources:
        for place, record in read_records(source, found.problems):
            found.records += 1
            try:
                parsed = parse_record(record, place, method)
            except Malformed as problem:
                found.problems.add(str(problem), place)
            else:
                found.forms[parsed.form] += 1
                found.unused.update(parsed.unused)
                found.examples += parsed.examples
    _find_mixture(found)
    if not found.problems and not found.examples:
        found.problems.add("no examples", Place(", ".join(sources), 0))
    return found


def read_set(sources: Sequence[str], method: str = "sft") -> DataSet:
    """Read a set; raises DataInvalid with every problem."""
    found = inspect_set(sources, method)
    if found.problems:
        raise DataInvalid(str(found.problems), "correct the data, see `lorry data check`")
    return found


def find_leaks(train: DataSet, other: DataSet) -> list[Place]:
    """The places in `other` whose prompts are in the training set too."""
    seen = {_key(example) for example in train.examples}
    return [example.place for example in other.examples if _key(example) in seen]


def refuse_leaks(train: DataSet, other: DataSet) -> None:
    """Raise DataInvalid if the sets share a prompt."""
    if leaked := find_leaks(train, other):
        raise DataInvalid(
            f"{len(leaked):,} of {len(other.examples):,} prompts are in the training set too: "
            f"{name_places(leaked)}",
            "keep the sets apart",
        )


def size_warning(count: int) -> str | None:
    """A warning about a small set; None for a set that is large enough."""
    if count < TOO_FEW:
        return (
            f"WARNING: ONLY {count} EXAMPLES. Below {TOO_FEW} an adapter mostly learns them by "
            "heart; do not trust it outside of them."
        )
    if count < FEW:
        return f"warning: {count} examples; below {FEW} an adapter overfits easily."
    return None


def _find_mixture(found: DataSet) -> None:
    plain = [example.place for example in found.examples if isinstance(example.prompt, str)]
    if plain and len(plain) < len(found.examples):
        first = plain[0]
        found.problems.add("chats and plain prompt/completion pairs are mixed", first)


def _key(example: Example, *, with_completion: bool = False) -> str:
    said: list[Any] = [example.prompt, example.tools]
    if with_completion:
        said.append(example.completion)
        if example.rejected is not None:
            said.append(example.rejected)
    return json.dumps(said, sort_keys=True)
