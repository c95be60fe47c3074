import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import not_refused

from adapters.errors import BadName, BadReference
from adapters.names import (
    ALIAS,
    DIGEST,
    NAME,
    RESERVED_NAMES,
    DigestPrefix,
    Reference,
    check_alias,
    check_publishable_name,
    nearest,
    parse_reference,
)

names = st.from_regex(NAME, fullmatch=True)
aliases = st.from_regex(ALIAS, fullmatch=True).filter(lambda alias: not alias.isdigit())
digests = st.from_regex(DIGEST, fullmatch=True).map(lambda text: DigestPrefix(text[7:]))
selectors = st.one_of(st.none(), st.integers(1, 999_999_999), aliases, digests)


@settings(deadline=None)
@given(st.builds(Reference, names, selectors))
def test_a_reference_survives_being_written_and_read(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    try:
        assert str(parse_reference(text)) == text
    except BadReference as error:
        refusal = error
    else:
        return
    assert refusal.code == "bad_reference"
    assert "\n" not in str(refusal)


SELECTORS = [
    ("orders", None),
    ("orders@1", 1),
    ("orders@999999999", 999_999_999),
    ("orders@stable", "stable"),
    ("orders@v2", "v2"),
    ("orders@2.1", "2.1"),
    ("orders@sha256:abcdef", DigestPrefix("abcdef")),
    ("orders@sha256:" + "0" * 64, DigestPrefix("0" * 64)),
    ("orders@sha256", "sha256"),
]


def test_the_part_after_the_at_sign_says_which_version() -> None:
    found = [(text, parse_reference(text)) for text, _ in SELECTORS]
    assert found == [(text, Reference("orders", selector)) for text, selector in SELECTORS]


MALFORMED = [
    "",
    "@",
    "@1",
    "orders@",
    "orders@@1",
    "orders@1@2",
    "orders@0",
    "orders@007",
    "orders@-1",
    "orders@1234567890",
    "orders@sha256:",
    "orders@sha256:abcde",
    "orders@sha256:ABCDEF",
    "orders@sha256:" + "0" * 65,
    "orders@md5:abcdef",
    "-orders",
    ".orders",
    "../x",
    "a/b",
    "a,b",
    "a b",
    "a\n",
    "orders@stable\n",
    "a\x00",
    "base:orders",
    "größe",
    "x" * 129,
    "orders@" + "x" * 65,
    "orders@\N{ARABIC-INDIC DIGIT ONE}",
]


def test_a_malformed_reference_is_refused() -> None:
    assert not_refused(parse_reference, BadReference, MALFORMED) == []


@pytest.mark.parametrize("unit", ["x", "@", "9", "sha256:", "a@", ".", "\x00"])
def test_a_huge_text_is_refused_at_once_and_not_repeated(unit: str) -> None:
    text = unit * (10_000_000 // len(unit))
    started = time.perf_counter()
    with pytest.raises(BadReference) as refused:
        parse_reference(text)
    assert time.perf_counter() - started < 0.5
    assert len(str(refused.value)) < 300


ORDINARY = ["a", "7", "Orders-JSON_v1.2", "x" * 128, "text-to-sql", "bases"]


def test_ordinary_names_may_be_published() -> None:
    assert not_refused(check_publishable_name, BadName, ORDINARY) == ORDINARY


MALFORMED_NAMES = ["Text", "BASE", "", "x" * 129, "a@b", "a:b", "-a", "_other"]


def test_reserved_and_malformed_names_may_not_be_published() -> None:
    assert not_refused(check_publishable_name, BadName, [*RESERVED_NAMES, *MALFORMED_NAMES]) == []


HIJACKED = ["text", "image", "audio", "video", "input", "file", "base"]


def test_names_that_the_engine_would_hijack_are_reserved() -> None:
    assert not set(HIJACKED) - RESERVED_NAMES


NO_ALIASES = ["1", "12345", "", "a b", "x" * 65, "sha256:abcdef", "a\n"]


def test_an_alias_cannot_be_mistaken_for_a_version_or_a_digest() -> None:
    assert not_refused(check_alias, BadName, NO_ALIASES) == []


def test_ordinary_aliases_are_allowed() -> None:
    for alias in ("stable", "canary", "v1", "2026-08"):
        check_alias(alias)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("support-tnoe", "support-tone"),
        ("suport-tone", "support-tone"),
        ("support-tone2", "support-tone"),
        ("zupport-tone", "support-tone"),
        ("Support_Tone", "support-tone"),
        ("ORDERS.JSON", "orders.json"),
        ("support-tone", None),
        ("something-else", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_a_misspelt_name_finds_the_nearest_one(written, meant) -> None:
    assert nearest(written, {"support-tone", "orders.json"}) == meant
