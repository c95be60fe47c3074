"""An answer is right when it is equal, or parts where two tokens were level."""

from __future__ import annotations

from bench.truth import LEVEL, Verdict, judge

FAR, NEAR = LEVEL * 10, LEVEL / 10


def test_equal_answers_are_equal_whatever_the_gaps():
    assert judge([1, 2, 3], [1, 2, 3], [NEAR, NEAR, NEAR]) == Verdict(equal=1)


def test_a_parting_where_one_token_led_clearly_is_wrong():
    assert judge([1, 9, 3], [1, 2, 3], [FAR, FAR, FAR]) == Verdict(wrong=1)


def test_a_parting_at_a_level_place_is_no_error_and_hides_none_before_it():
    assert judge([1, 9, 8], [1, 2, 3], [FAR, NEAR, FAR]) == Verdict(level=1)
    assert judge([9, 9, 8], [1, 2, 3], [FAR, NEAR, FAR]) == Verdict(wrong=1)


def test_an_answer_of_another_length_is_wrong():
    assert judge([1], [1, 2], [FAR, FAR]) == Verdict(wrong=1)


def test_verdicts_add_up():
    total = Verdict(equal=2) + Verdict(level=1) + Verdict(wrong=3)
    assert total == Verdict(2, 1, 3)
    assert total.compared == 6
