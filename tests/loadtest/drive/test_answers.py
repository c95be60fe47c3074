"""Content, error codes and ends of answers."""

from __future__ import annotations

import json

import pytest

from loadtest.drive.answers import CallFailed, Received, parse


def received(*documents: object) -> Received:
    """One piece per second, from second 100 on."""
    answer = Received()
    for number, document in enumerate(documents):
        answer.take_event(json.dumps(document).encode(), 100.0 + number)
    return answer


def choice(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, **fields}]}


NOTHING = [
    choice(delta={"role": "assistant", "content": ""}),
    choice(delta={"role": "assistant"}),
    choice(delta={}, finish_reason="stop"),
    choice(text=""),
    choice(delta={"content": None}),
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
]
SOMETHING = [
    choice(delta={"content": "a"}),
    choice(text=" "),
    choice(delta={"reasoning_content": "hm"}),
    choice(delta={"reasoning": "hm"}),
]


def test_a_piece_without_content_is_not_the_first():
    assert [each for each in NOTHING if received(each).first is not None] == []


def test_a_piece_with_content_is_the_first():
    assert [each for each in SOMETHING if received(NOTHING[0], each).first != 101.0] == []


def test_gaps_are_between_pieces_with_content():
    answer = received(NOTHING[0], SOMETHING[0], NOTHING[3], SOMETHING[0], SOMETHING[1])
    assert (answer.first, answer.last, answer.gaps) == (101.0, 104.0, [2.0, 1.0])
    assert (answer.pieces, answer.text) == (3, "aa ")


def test_the_kept_text_is_bounded():
    assert received(*[choice(text="x" * 100)] * 5).text == "x" * 256


def test_an_error_code_is_normalized():
    codes = [
        ({"code": "adapters_busy"}, "adapters_busy"),
        ({"code": 500}, "500"),
        ({"code": "Über/Last " + "x" * 60}, "ber_last_" + "x" * 30),
        ({"code": None}, ""),
        ({"code": "日本"}, ""),
        ("overloaded", ""),
        (None, ""),
    ]
    found = [(each, parse(json.dumps({"error": each}).encode()).error_code) for each, _ in codes]
    assert found == codes


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"3", b'{"choices": 3}', b'{"model": "\xff"}', b'{"x":' + b"[" * 100_000],
)
def test_other_bodies_are_bad_answers(data):
    with pytest.raises(CallFailed, match="bad_answer"):
        parse(data)
