"""The examples that an adapter is judged on: read, cut to a limit, and kept apart from training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.data.forms import Example
from training.data.problems import Place
from training.data.sets import DataSet, read_set, refuse_leaks
from training.data.tokens import Tokenizer
from training.errors import DataInvalid
from training.evaluation.answers import expected_text

FEW = 50


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Examples with the texts that they expect; the digest is that of exactly these examples, and
    `whole_digest` that of the set without a limit."""

    sources: tuple[str, ...]
    examples: list[Example]
    expected: list[str]
    digest: str
    whole_digest: str

    @property
    def places(self) -> list[Place]:
        return [example.place for example in self.examples]

    def warnings(self) -> list[str]:
        """What is worth saying about the set."""
        if len(self.examples) >= FEW:
            return []
        return [f"warning: {len(self.examples)} examples; below {FEW} an interval is rough"]


def read_heldout(
    sources: Sequence[str],
    *,
    limit: int | None = None,
    trained_on: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
) -> HeldOut:
    """The first `limit` examples of a set.

    Raises DataInvalid, also for a prompt that is in the set `trained_on` too.
    """
    data = read_set(sources)
    if trained_on:
        refuse_leaks(read_set(trained_on), data)
    chosen = data.examples[:limit]
    digest = DataSet(data.sources, chosen).digest()
    expected = [expected_text(example, tokenizer) for example in chosen]
    return HeldOut(data.sources, chosen, expected, digest, data.digest())


def refuse_training_set(heldout: HeldOut, label: str, provenance: dict[str, Any] | None) -> None:
    """Raise DataInvalid if a version's provenance says that it was trained on this very set.

    It holds the digest of the whole set: single prompts of it can't be found (`trained_on` can).
    """
    data = (provenance or {}).get("data")
    trained = data.get("train") if isinstance(data, dict) else None
    if isinstance(trained, dict):
        trained = trained.get("digest")
    if trained in (heldout.digest, heldout.whole_digest):
        raise DataInvalid(
            f"{label} was trained on {', '.join(heldout.sources)}",
            "judge it on examples that it has never seen",
        )
