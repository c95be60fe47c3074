"""What a sum of adapters means: its grammar, its canonical form and its digest."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.catalog import AdapterVersion
from adapters.errors import SumInvalid
from adapters.sums import (
    MAX_PARTS,
    MAX_SUM,
    AdapterSum,
    Part,
    add_up,
    is_sum,
    parse_sum,
    part_labels,
    parts_of,
)


def version(name: str, number: int = 1, **given) -> AdapterVersion:
    facts = {
        "digest": f"sha256:{hashlib.sha256(f'{name}{number}'.encode()).hexdigest()}",
        "rank": 8,
        "alpha": 16.0,
        "base": "tiny",
        "base_digest": "sha256:b",
        "size_bytes": 10,
        "created_at": datetime(2026, 1, number, tzinfo=UTC),
        "pinned": False,
        "aliases": (),
        "weight": 1.0,
        "gate": None,
        "provenance": None,
    }
    return AdapterVersion(name=name, version=number, **facts | given)


SHELF = {
    each.label: each for each in (version("a"), version("a", 2), version("b"), version("c-1.x"))
}


def read(text: str) -> AdapterVersion | None:
    return add_up(Part(SHELF[term.reference], term.weight) for term in parse_sum(text))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a@1*0.5", "a@1*0.5"),
        ("b@1*0.5+a@1*0.70", "a@1*0.7+b@1*0.5"),
        ("  a@1 * 0.7  +\tb@1 ", "a@1*0.7+b@1"),
        ("a@1+b@1", "a@1+b@1"),
        ("a@1*-.25+b@1*004.", "a@1*-0.25+b@1*4"),
        ("a@2+a@1", "a@1+a@2"),
        ("a@1+a@1", "a@1*2"),
        ("a@1*0.1+b@1+a@1*0.2", "a@1*0.3+b@1"),
        ("a@1*0.5+b@1*0+a@1*0.6", "a@1*1.1"),
        ("c-1.x@1*-1", "c-1.x@1*-1"),
        ("a@1*1.00000000000000000001", "a@1*1.00000000000000000001"),
    ],
)
def test_one_sum_has_one_form(text, label):
    found = read(text)
    assert isinstance(found, AdapterSum)
    assert (found.label, found.name, found.version) == (label, label, 0)
    again = read(found.label)
    assert again == found
    assert part_labels(label) == [part.version.label for part in found.parts]


@pytest.mark.parametrize(
    "text", ["a@1*1", "a@1*0.4+a@1*0.6", "b@1*0+a@1", "a@1*3+a@1*-2", "a@1*1.0"]
)
def test_one_whole_part_is_that_version_itself(text):
    assert read(text) is SHELF["a@1"]


@pytest.mark.parametrize("text", ["a@1*0", "a@1*-0.0+b@1*0", "a@1+a@1*-1"])
def test_nothing_at_all_is_the_base(text):
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a@1*4.01", "the weight 4.01 of 'a@1' is not from -4 to 4"),
        ("b@1+a@1*-5", "the weight -5 of 'a@1' is not from -4 to 4"),
        ("a@1*3+b@1+a@1*2", "the weight 5 of 'a@1' is not from -4 to 4"),
        ("a@1*", "the weight '' of 'a@1' is no decimal"),
        ("a@1*half", "the weight 'half' of 'a@1' is no decimal"),
        ("a@1*1e0", "the weight '1e0' of 'a@1' is no decimal"),
        ("a@1*nan", "the weight 'nan' of 'a@1' is no decimal"),
        ("a@1*٣", "of 'a@1' is no decimal"),
        ("a@1*0.5*2", "the weight '0.5*2' of 'a@1' is no decimal"),
        ("a@1*+1", "the weight '' of 'a@1' is no decimal"),
        ("a@1++b@1", "the part '' of the sum names no adapter"),
        ("+a@1", "the part '' of the sum names no adapter"),
        ("*2+a@1", "the part '*2' of the sum names no adapter"),
        ("+".join(["a@1"] * 8) + "+b@1", "at most 8 parts, and 'b@1' is one too many of 9"),
        ("a@1+" * MAX_SUM, "a sum of 8192 characters is too long"),
    ],
)
def test_what_is_no_sum_is_refused_and_the_part_named(text, said):
    with pytest.raises(SumInvalid) as refused:
        read(text)
    assert said in refused.value.message
    assert refused.value.hint


def test_parts_of_other_chat_forms_have_no_sum_but_those_of_one_form_do():
    own = version("own", provenance={"chat_form": {"sha256": "x"}, "data": 1})
    same = version("same", provenance={"chat_form": {"sha256": "x"}})
    other = version("other", provenance={"chat_form": {"sha256": "y"}})
    half = Decimal("0.5")
    found = add_up([Part(own, half), Part(same, half)])
    assert found.chat_form == {"sha256": "x"}
    assert add_up([Part(own, half)]).chat_form == {"sha256": "x"}
    assert add_up([Part(SHELF["a@1"], half)]).chat_form is None
    for wrong in (other, SHELF["a@1"]):
        with pytest.raises(SumInvalid, match="different chat templates"):
            add_up([Part(own, half), Part(wrong, half)])
    # A part that adds nothing is no part.
    assert add_up([Part(own, half), Part(other, Decimal(0))]).chat_form == {"sha256": "x"}


def test_the_digest_is_of_the_parts_digests_and_weights_as_the_docs_say():
    found = read("b@1*0.5+a@1*0.7")
    lines = sorted([f"{SHELF['a@1'].digest}*0.7\n", f"{SHELF['b@1'].digest}*0.5\n"])
    assert found.digest == f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    twin = replace(SHELF["a@1"], name="zebra")  # the same bytes under another name
    other = add_up([Part(SHELF["b@1"], Decimal("0.5")), Part(twin, Decimal("0.7"))])
    assert other.digest == found.digest
    assert other.label == "b@1*0.5+zebra@1*0.7"
    digests = [part.version.digest for part in found.stacked]
    assert digests == [part.version.digest for part in other.stacked] == sorted(digests)
    assert read("a@1*0.7+b@1*0.50001").digest != found.digest
    assert read("a@1*0.5+b@1*0.7").digest != found.digest


def test_a_sum_has_the_facts_of_its_parts():
    light = version("light", rank=4, weight=0.5, size_bytes=7)
    heavy = version("heavy", 3, rank=16, weight=2.0)
    found = add_up([Part(light, Decimal(2)), Part(heavy, Decimal(1))])
    assert (found.rank, found.size_bytes, found.weight) == (20, 17, 0.5)
    assert (found.base, found.base_digest) == ("tiny", "sha256:b")
    assert found.created_at == heavy.created_at
    assert [part.as_json() for part in parts_of(found)] == [
        {"label": "heavy@3", "digest": heavy.digest, "weight": 1.0},
        {"label": "light@1", "digest": light.digest, "weight": 2.0},
    ]
    assert parts_of(light) == parts_of(None) == ()


def test_no_other_name_looks_like_a_sum():
    assert is_sum("a*2")
    assert is_sum("a + b")
    assert not any(map(is_sum, ("a", "a@1", "a@sha256:123456", "a@x.y_z-1", "org/base", "_other")))
    assert part_labels("a@1") == ["a@1"]


weights = st.decimals(-1, 1, places=3)
written = st.lists(
    st.tuples(st.sampled_from(sorted(SHELF)), weights), min_size=1, max_size=MAX_PARTS
)


@given(written, st.randoms())
def test_order_does_not_matter_and_the_form_is_read_back(parts, random):
    text = " + ".join(f"{label} * {weight:f}" for label, weight in parts)
    found = read_or_refuse(text)
    random.shuffle(parts)
    assert read_or_refuse("+".join(f"{label}*{weight:f}" for label, weight in parts)) == found
    if isinstance(found, AdapterSum):
        assert read(found.label) == found
        assert len({part.version.label for part in found.parts}) == len(found.parts)


def read_or_refuse(text: str) -> AdapterVersion | str | None:
    try:
        return read(text)
    except SumInvalid:
        return "refused"
