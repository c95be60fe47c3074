"""Each family of bases answers as transformers and PEFT compute, with adapters mixed in one batch.

An engine for each family, quantization and set of kernels: vLLM has other code for each.
`pytest tests/engine/test_bases.py --all --write-docs` writes the table of docs/bases.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bases import (
    FAMILIES,
    KINDS,
    WITHIN,
    build,
    differences,
    reference,
    settings,
    write_adapters,
)
from engine_process import ROOT, EngineProcess, Request
from publishing import publish
from shop import BASE

from server.kernels import PORTABLE_VARIABLE

pytestmark = pytest.mark.filterwarnings("default")  # of transformers and PEFT

LENGTHS = (9, 40, 75)
TABLE = ROOT / "docs/bases.md"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"
QUICK = {("qwen2", "nf4", "compiled")}
CELLS = [
    (family, quantization, kernels)
    for family in FAMILIES
    for quantization in ("bf16", "nf4")
    for kernels in ("compiled", "portable")
    if not (FAMILIES[family].is_mixture and quantization == "nf4")
]


@dataclass(frozen=True)
class Made:
    """A base, its adapters as PEFT saved them, and where they were published."""

    base: Path
    adapters: Path
    objects: Path
    published: dict[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A family's base and published adapters, made on first use."""
    known: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in known:
            family, place = FAMILIES[name], tmp_path_factory.mktemp(name)
            base = build(family, place / "base", BASE)
            write_adapters(family, base, place / "adapters")
            store, published = place / "store", {}
            for kind in KINDS:
                version = publish(place / "adapters" / kind, name=kind, store=store, base=base)
                digits = version.digest.removeprefix("sha256:")
                published[kind] = f"{digits[:2]}/{digits}"
            known[name] = Made(base, place / "adapters", store / "objects/sha256", published)
        return known[name]

    return make


@pytest.fixture(scope="module")
def proven(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str, str], float]]:
    """The largest difference of each cell; the table is written when all are there."""
    found: dict[tuple[str, str, str], float] = {}
    yield found
    if request.config.option.write_docs and len(found) == len(CELLS):
        write_table(found)


@pytest.mark.parametrize(
    ("family", "quantization", "kernels"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in CELLS],
)
def test_a_mixed_batch_answers_as_transformers_and_peft_compute_it(
    family: str,
    quantization: str,
    kernels: str,
    made: Callable[[str], Made],
    proven: dict[tuple[str, str, str], float],
    record_property: Callable[[str, str], None],
    tmp_path: Path,
) -> None:
    here = made(family)
    chance = random.Random(7)
    prompts = [tuple(chance.choices(range(2, 896), k=length)) for length in LENGTHS]
    models = [None, *KINDS]
    asked = [
        Request(prompt, model and here.published[model], tokens=8, prompt_logprobs=True)
        for prompt in prompts
        for model in models
    ]
    engine = EngineProcess(
        settings(here.base, quantization),
        here.objects,
        here.published.values(),
        tmp_path / "log",
        env={PORTABLE_VARIABLE: "1"} if kernels == "portable" else None,
    )
    try:
        answers = engine.run(asked)
    finally:
        engine.close()
    score = reference(here.base, here.adapters, nf4=quantization == "nf4")
    # In a mixture, rounding to bf16 decides between two experts that are nearly level: at some
    # tokens another one answers, and all that follows of it differs.
    largest, wrong, others = 0.0, [], []
    for request, answer, model in zip(asked, answers, models * len(prompts), strict=True):
        tokens = [*request.prompt, *answer.tokens]
        all_off = differences(answer, request.prompt, score(model, tokens)).abs()
        off = all_off.quantile(0.95) if FAMILIES[family].is_mixture else all_off.max()
        mixed_up = [
            float(differences(answer, request.prompt, score(other, tokens)).abs().mean())
            for other in models
            if other != model
        ]
        largest = max(largest, float(off))
        others.append(min(mixed_up))
        if off > WITHIN:
            wrong.append((model, len(request.prompt), float(off), float(all_off.mean())))
    record_property("largest", f"{family} {quantization} {kernels}: {largest:.4f}")
    assert wrong == []
    assert min(others) > 2 * WITHIN, "the adapters are too much alike for a mix-up to show"
    proven[family, quantization, kernels] = largest


def write_table(found: dict[tuple[str, str, str], float]) -> None:
    """Put the table of what is proven between its markers in docs/bases.md."""
    before, _, rest = TABLE.read_text().partition(BEGIN)
    TABLE.write_text(f"{before}{BEGIN}{make_table(found)}{END}{rest.partition(END)[2]}")


def make_table(found: dict[tuple[str, str, str], float]) -> str:
    """A row for each family: the largest difference from transformers and PEFT, in nats."""
    lines = ["| family | of its own | bf16 | NF4 |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        cells = []
        for quantization in ("bf16", "nf4"):
            values = [value for key, value in found.items() if key[:2] == (name, quantization)]
            cells.append(f"{max(values):.3f}" if values else "refused")
        lines.append(f"| {family.models} | {family.special} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_documented_table_has_every_family_and_no_other(
    request: pytest.FixtureRequest,
) -> None:
    if request.config.option.write_docs:
        pytest.skip("the table is written when this run ends")
    table = TABLE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.split("|")[1:5] for line in table.splitlines()[2:]]
    shown = {row[0].strip(): [cell.strip() for cell in row[2:]] for row in rows}
    assert sorted(shown) == sorted(family.models for family in FAMILIES.values())
    for family in FAMILIES.values():
        bf16, nf4 = shown[family.models]
        assert float(bf16) <= WITHIN
        assert (nf4 == "refused") if family.is_mixture else (float(nf4) <= WITHIN)
