"""The example domain: what is written can be read back, and what is kept back stays back."""

import json
import random
import re
import sqlite3
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from training.shop.answers import order_json, order_sql, restate_order
from training.shop.dataset import ADAPTERS, exchanges, write_datasets
from training.shop.lexicon import NOUNS, STYLES
from training.shop.orders import Line, Order, sample_order, write_order
from training.shop.splits import is_reserved
from training.tinybase.corpus import write_example
from training.tinybase.foreign import DOMAINS

ORDER = Order((Line(2, "blue", "lamp"), Line(1, "oak", "desk")), "Oslo", "Friday", True, False)


def reserved_pairs_in(prompt: str) -> list[tuple[str, str]]:
    """Find (style, noun) pairs in any of the ways in which a customer writes them."""
    style, noun = "|".join(STYLES), "|".join(NOUNS)
    found = re.findall(rf"\b({style}) ({noun})s?\b", prompt)
    found += [(s, n) for n, s in re.findall(rf"\b({noun})s? in ({style})\b", prompt)]
    return [pair for pair in found if is_reserved(*pair)]


def test_about_one_pair_in_ten_is_reserved() -> None:
    reserved = sum(is_reserved(style, noun) for style in STYLES for noun in NOUNS)
    assert 0.07 < reserved / (len(STYLES) * len(NOUNS)) < 0.13


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_heldout_prompt_has_a_reserved_pair(adapter: str) -> None:
    for prompt, _ in islice(exchanges(adapter, "heldout"), 200):
        assert reserved_pairs_in(prompt), prompt


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_no_training_prompt_or_answer_has_a_reserved_pair(adapter: str) -> None:
    for prompt, answer in islice(exchanges(adapter, "train"), 1000):
        assert not reserved_pairs_in(prompt), prompt
        assert not reserved_pairs_in(answer), answer


def test_pretraining_has_no_reserved_pair_and_no_adapter_format() -> None:
    for index in range(3000):
        example = write_example(0, index)
        text = f"{example.prompt}\n{example.answer}"
        assert not reserved_pairs_in(text), text
        assert '{"items":' not in text
        assert "INTO orders" not in text
        assert "thank you for writing" not in text.lower()


def test_other_domains_share_no_noun_with_the_shop() -> None:
    for domain in DOMAINS:
        assert not set(domain.things) & set(NOUNS)


def test_an_order_is_restated_in_plain_words() -> None:
    assert restate_order(ORDER) == (
        "Order: 2 blue lamp, 1 oak desk. Ship to Oslo by Friday. Gift wrap: yes. Express: no."
    )


def test_json_answers_hold_exactly_the_order() -> None:
    rng = random.Random(1)
    for _ in range(200):
        order = sample_order(rng, "train")
        document = json.loads(order_json(order))
        assert list(document) == ["items", "city", "day", "gift", "express"]
        lines = tuple(Line(i["qty"], i["style"], i["item"]) for i in document["items"])
        fields = (document["city"], document["day"], document["gift"], document["express"])
        assert Order(lines, *fields) == order


def test_sql_answers_run_and_insert_exactly_the_lines() -> None:
    rng = random.Random(2)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE orders (qty, style, item, city, day, gift, express)")
    for _ in range(200):
        order = sample_order(rng, "train")
        database.execute("DELETE FROM orders")
        database.execute(order_sql(order))
        assert database.execute("SELECT * FROM orders").fetchall() == [
            (x.quantity, x.style, x.noun, order.city, order.day, order.gift, order.express)
            for x in order.lines
        ]
    database.close()


def test_replies_are_polite_and_name_order_and_pieces() -> None:
    for prompt, answer in islice(exchanges("support-tone", "train"), 200):
        assert answer.startswith("Dear ")
        reference = re.search(r"\b[A-Z]\d\d\b", prompt)
        assert reference is not None
        assert f"order {reference[0]}, " in answer


def test_orders_are_written_in_many_ways() -> None:
    rng = random.Random(3)
    assert len({write_order(rng, ORDER) for _ in range(500)}) > 400


def test_the_data_sets_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = write_datasets(tmp_path / "first")
    again = tmp_path / "again"
    command = [sys.executable, "-m", "training.shop", "--out", str(again)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert len(first) == 9
    assert printed.split() == [str(again / path.name) for path in first]
    for path in first:
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_no_prompt_is_in_two_sets() -> None:
    for adapter in ADAPTERS:
        train = {prompt for prompt, _ in islice(exchanges(adapter, "train"), 2400)}
        heldout = {prompt for prompt, _ in islice(exchanges(adapter, "heldout"), 200)}
        assert len(train) == 2400
        assert not train & heldout
