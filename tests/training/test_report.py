"""The report of a run: what it says was kept, its curves, and that texts stay texts."""

import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training.report.curves import LEAST_TO_SMOOTH, curves_chart, curves_picture, read_curves
from training.report.run_report import what_was_kept, write_report

HOSTILE = '</script><img src=x onerror="alert(1)"> $\\frac$ {{ 7 * 7 }} <b>&amp;'


def provenance(**changes: Any) -> dict[str, Any]:
    """What a run of forty steps leaves; its best step was 30."""
    return {
        "name": "orders",
        "base": {"name": "tiny"},
        "data": {"train": {"digest": "sha256:12", "examples": 240}},
        "recipe": {"lora": {"rank": 8, "target_modules": ["q_proj", "v_proj"]}},
        "machine": "2 cores",
        "packages": {"torch": "2.11"},
        "steps": 40,
        "best_step": 30,
        "train_loss": 0.5,
        "validation_loss": 0.61,
        "validation_metric": 0.75,
        "metric": {"name": "exact-match", "digest": "12"},
        "train_seconds": 12.5,
        "peak_memory_bytes": 3 << 30,
        "trainable_parameters": 123456,
        "curve": {
            "train": [[step, 2.0 - step / 40 + 0.2 * (step % 2)] for step in range(1, 41)],
            "validation": [[10, 1.5, 0.25], [20, 1.1, 0.5], [30, 0.61, 0.75], [40, 0.7, 0.625]],
        },
        "warnings": [],
    } | changes


class Page(HTMLParser):
    """Reads a page as a browser does: which elements there are, and which text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if data.strip() and len(data) < 10_000:  # plotly itself is longer
            self.texts.append(data.strip())


def test_the_report_is_one_page_that_loads_nothing_and_a_picture(tmp_path: Path) -> None:
    write_report(tmp_path, provenance())
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "curves.png"}
    page = Page((tmp_path / "report.html").read_text())
    assert page.loaded == []
    said = " ".join(page.texts)
    assert "the best exact-match (0.75) of 4 evaluations" in said
    for fact in ("orders", "3.0 GiB", "123,456", "q_proj, v_proj", "train.examples", "240"):
        assert fact in said
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


def test_texts_of_a_recipe_or_a_data_set_stay_texts(tmp_path: Path) -> None:
    facts = provenance(
        name=HOSTILE,
        base={"name": HOSTILE},
        data={HOSTILE: HOSTILE},
        recipe={"data": [HOSTILE]},
        machine=HOSTILE,
        metric={"name": HOSTILE, "digest": ""},
        warnings=[HOSTILE],
    )
    write_report(tmp_path, facts)
    page = Page((tmp_path / "report.html").read_text())
    assert {"img", "b"} & {*page.tags} == {"b"}  # the figures in the tiles are bold
    assert page.tags.count("b") == 7 + 1  # tiles, and the head of the warnings
    assert page.loaded == []
    assert " ".join(page.texts).count("onerror") >= 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Step 30 of 40 was kept: the best exact-match (0.75) of 4 evaluations"),
        ({}, "At step 40 it was 0.625."),
        (
            {
                "metric": None,
                "curve": {"train": [], "validation": [[10, 1.5, None], [30, 1, None]]},
            },
            "Step 30 of 40 was kept: the lowest loss (1) of 2 evaluations on validation.",
        ),
        (
            {"best_step": None, "curve": {"train": [[1, 2.0]], "validation": []}},
            "The last step, 40, was kept: no validation set says which is better.",
        ),
    ],
)
def test_it_says_what_was_kept_and_why(changes: dict[str, Any], said: str) -> None:
    assert said in what_was_kept(provenance(**changes))


def test_a_smoothed_curve_follows_without_lag() -> None:
    curves = read_curves(provenance())
    assert curves.smoothed.steps == curves.train.steps
    falling = {"train": [[step, 2.0 - step / 40] for step in range(1, 41)], "validation": []}
    straight = read_curves(provenance(curve=falling))
    assert straight.smoothed.values == pytest.approx(straight.train.values)
    rough, smooth = (
        sum(abs(after - before) for before, after in pairwise(line.values))
        for line in (curves.train, curves.smoothed)
    )
    assert smooth < rough / 2
    few = {"train": [[step, 1.0] for step in range(1, LEAST_TO_SMOOTH)], "validation": []}
    assert read_curves(provenance(curve=few)).smoothed.steps == []


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    """A run of one step without a validation set, and one whose loss was lost on the way."""
    bare = {"name": "one", "base": {"name": "tiny"}, "steps": 1}
    write_report(tmp_path, bare | {"curve": {"train": [[1, 2.0]], "validation": []}})
    write_report(tmp_path, bare)
    points = [[step, math.nan if step % 3 else 1.0] for step in range(30)]
    curves = read_curves(bare | {"curve": {"train": points, "validation": [[5, None, None]]}})
    assert curves.smoothed.values[-2] == 1.0
    assert "NaN" not in curves_chart(curves)
    curves_picture(curves).savefig(tmp_path / "gaps.png")
