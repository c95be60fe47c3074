"""What a bare name may have meant."""

from __future__ import annotations

from call_records import move

from loadtest.judge.liveness import Liveness

ROLLED = [move(5, 7, 2), move(20, 21, 1)]


def test_a_name_means_version_1_or_what_was_said_until_it_is_moved():
    assert Liveness({}).may_mean("orders", 0, 9) == {1}
    assert Liveness({"orders": 4}, ROLLED).may_mean("orders", 1, 2) == {4}
    assert Liveness({}, ROLLED).may_mean("tone", 6, 6) == {1}


def test_a_move_happens_somewhere_between_its_beginning_and_its_end():
    liveness = Liveness({}, ROLLED)
    assert liveness.may_mean("orders", 4, 4.9) == {1}
    assert liveness.may_mean("orders", 4, 5.5) == {1, 2}
    assert liveness.may_mean("orders", 6, 9) == {1, 2}
    assert liveness.may_mean("orders", 7.1, 19) == {2}
    assert liveness.may_mean("orders", 22, 30) == {1}


def test_a_call_may_see_all_versions_that_came_and_went_while_it_was_resolved():
    three = [move(1, 2, 2), move(3, 4, 3)]
    assert Liveness({}, three).may_mean("orders", 0, 9) == {1, 2, 3}


def test_actions_may_come_in_any_order_and_those_that_move_nothing_do_not_count():
    publish = move(6, 30, None)
    assert Liveness({}, [ROLLED[1], publish, ROLLED[0]]).may_mean("orders", 8, 9) == {2}


def test_a_move_without_a_clear_answer_leaves_both_possible_until_the_next_sure_one():
    unclear = move(5, 7, 2, failure="no answer")
    liveness = Liveness({}, [unclear, move(20, 21, 3)])
    assert liveness.may_mean("orders", 10, 11) == {1, 2}
    assert liveness.may_mean("orders", 22, 23) == {3}


def test_a_version_that_nobody_knows_may_be_any():
    liveness = Liveness({}, [move(5, 7, 0, failure="no answer"), move(20, 21, 3)])
    assert liveness.may_mean("orders", 10, 11) is None
    assert liveness.may_mean("orders", 22, 23) == {3}
