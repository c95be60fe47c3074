"""Bodies are counted before they are parsed; what stands in a text does not count."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RequestTooLarge
from server.http.shape import Shape

SHAPE = Shape(objects=10, values=100)
FITS = [
    {"prompt": "x" * 100_000},
    {"prompt": '{[,:"\\' * 1_000},
    {"prompt": [1] * 90},
    {"prompt": ["a\\", '"', "\\\\", '\\"'] * 20},
    {"messages": [{"role": "user"}] * 8},
]
TOO_LARGE = [
    ("objects", {"messages": [{"role": "user"}] * 9}),
    ("objects", [[[[[[[[[[[]]]]]]]]]]]),
    ("values", {"prompt": [1] * 100}),
    ("values", {"prompt": ["a\\", '"', "\\\\", '\\"'] * 30}),
    ("members", {str(number): 1 for number in range(41)}),
]


@pytest.mark.parametrize("body", FITS)
def test_a_body_within_the_bounds_passes(body):
    SHAPE.check(json.dumps(body).encode())


@pytest.mark.parametrize(("bound", "body"), TOO_LARGE)
def test_a_body_beyond_a_bound_is_refused_with_the_setting(bound, body):
    with pytest.raises(RequestTooLarge, match=f"{bound}.* the setting max_body_|max_body_{bound}"):
        SHAPE.check(json.dumps(body).encode())


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    ),
    st.booleans(),
)
def test_the_count_is_that_of_the_parsed_document(document, ascii_only):
    objects = values = members = 0
    rest = [document]
    while rest:
        value = rest.pop()
        if isinstance(value, dict | list):
            objects += 1
            values += max(len(value) - 1, 0)
            members += len(value) if isinstance(value, dict) else 0
            rest.extend(value.values() if isinstance(value, dict) else value)
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    fits = objects <= 5 and members <= 20 and objects + values <= 15
    if fits:
        Shape(5, 15).check(body)
    else:
        with pytest.raises(RequestTooLarge):
            Shape(5, 15).check(body)
