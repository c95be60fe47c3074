"""An answer is right if it is equal or parts where two tokens are level."""

from __future__ import annotations

from bench.truth import LEVEL, Verdict, judge, level_with

NONE: list[int] = []


def test_equal_answers_are_equal_whatever_was_level():
    assert judge([1, 2, 3], [1, 2, 3], [[9], [9], [9]]) == Verdict(equal=1)


def test_a_parting_where_no_token_was_level_is_wrong():
    assert judge([1, 9, 3], [1, 2, 3], [NONE, NONE, NONE]) == Verdict(wrong=1)


def test_a_parting_to_another_token_than_the_level_one_is_wrong():
    assert judge([1, 9, 3], [1, 2, 3], [NONE, [8], NONE]) == Verdict(wrong=1)


def test_a_parting_to_a_level_token_is_no_error_and_hides_none_before_it():
    assert judge([1, 9, 8], [1, 2, 3], [NONE, [9], NONE]) == Verdict(level=1)
    assert judge([9, 9, 8], [1, 2, 3], [NONE, [9], NONE]) == Verdict(wrong=1)


def test_an_answer_of_another_length_is_wrong():
    assert judge([1], [1, 2], [NONE, NONE]) == Verdict(wrong=1)


def test_level_tokens_are_those_just_behind_the_chosen_one():
    logprobs = {4: -1.0, 5: -1.0 - LEVEL / 2, 6: -1.0 - LEVEL * 2}
    assert level_with(4, logprobs) == [5]
    assert level_with(4, {4: -1.0}) == []


def test_verdicts_add_up():
    total = Verdict(equal=2) + Verdict(level=1) + Verdict(wrong=3)
    assert total == Verdict(2, 1, 3)
    assert total.compared == 6
