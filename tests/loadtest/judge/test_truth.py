"""Wrong answers are detected, independently of what the server reports."""

from __future__ import annotations

import pytest
from call_records import adapter_call, base_call, failed_call, move

from loadtest.drive.discovery import Models
from loadtest.judge.truth import Liveness, Truth

MARKERS = {
    ("orders", 1): " foo",
    ("orders", 2): " bar",
    ("tone", 1): " été",
}
LORRY = Models(base="tiny", adapters=["orders", "tone"], is_lorry=True)
VLLM = Models(base="tiny", adapters=["orders", "tone"], is_lorry=False)


def marker(name: str, version: int) -> str | None:
    return MARKERS.get((name, version))


def truth(*actions, models=LORRY, markers=marker) -> Truth:
    return Truth(models, markers, Liveness({}, actions))


def fault(record, *actions, **options) -> str:
    wrong = truth(*actions, **options).judge(record)
    return wrong.message if wrong else ""


@pytest.mark.parametrize(
    "record",
    [
        adapter_call(text=" foo foo foo"),
        adapter_call(text=" foo foo fo"),  # the kept part, or the first token of a marker of two
        adapter_call("tone", text=" été \ufffd"),
        adapter_call(text="", output_tokens=0),
        adapter_call(text=" foo", outcome="hung_up", answered=""),
        adapter_call(model="orders@1", text=" foo foo"),
        base_call(text=" whatever it says"),
        base_call(text=" foo"),  # by chance
        failed_call(503),
    ],
)
def test_correct_answers_have_no_fault(record):
    assert fault(record) == ""


def test_another_adapter_in_the_header_is_wrong():
    wrong = truth().judge(adapter_call(served="tone@1", number=7))
    assert wrong is not None
    assert (wrong.number, wrong.model) == (7, "orders")
    assert wrong.message == "the header says tone@1, not orders@VERSION"


@pytest.mark.parametrize(
    "record",
    [
        adapter_call(answered="tone@1"),
        adapter_call(answered="orders@2"),
        adapter_call(answered=""),
        adapter_call(served=""),
        adapter_call(served="base", answered="tiny"),
        adapter_call(version=2, model="orders@1"),
        base_call(served="orders@1"),
        base_call(answered="orders@1"),
    ],
)
def test_other_names_than_requested_are_wrong(record):
    assert "not" in fault(record)


def test_the_text_of_another_adapter_is_wrong_even_with_correct_names():
    message = fault(adapter_call(text=" été été"))
    assert "orders@1 repeats ' foo'" in message
    assert "this text is that of tone@1" in message


def test_the_text_of_another_version_is_wrong_even_with_correct_names():
    assert "that of orders@2" in fault(adapter_call(text=" bar bar"))
    rolled = move(1, 2, 2)
    assert "that of orders@1" in fault(adapter_call(version=2, text=" foo foo"), rolled)
    assert fault(adapter_call(version=2, text=" bar bar"), rolled) == ""


@pytest.mark.parametrize("text", [" foo, I mean", "foo", " foo foo\n", ""])
def test_any_other_text_than_the_marker_is_wrong(text):
    assert fault(adapter_call(text=text, output_tokens=4))


def test_a_marker_from_the_base_is_wrong():
    assert "that of orders@2" in fault(base_call(text=" bar bar b"))


def test_a_version_that_was_not_live_is_wrong_with_any_text():
    old = adapter_call(text=" foo", sent=9.0, first=9.5)
    message = fault(old, move(1, 2, 2))
    assert message == "answered by orders@1, while it meant orders@2"


def test_during_a_move_both_versions_are_correct():
    rolling = move(10.2, 10.4, 2)
    for version, text in ((1, " foo"), (2, " bar")):
        assert fault(adapter_call(version=version, text=text), rolling) == ""
    later = move(10.6, 10.7, 2)  # after its first piece
    assert "meant orders@1" in fault(adapter_call(version=2, text=" bar"), later)


def test_structured_answers_are_judged_by_names_only():
    answer = adapter_call(text='{"a": 1}', output_tokens=9, structured=True)
    assert fault(answer) == ""
    assert fault(adapter_call(served="tone@1", structured=True))


def test_a_server_without_versions_has_version_1_of_each_adapter():
    right = adapter_call(served="", answered="orders", text=" foo foo")
    assert fault(right, models=VLLM) == ""
    assert "that of orders@2" in fault(
        adapter_call(served="", answered="orders", text=" bar"), models=VLLM
    )
    assert fault(adapter_call(served="", answered="tone", text=" foo"), models=VLLM)


def test_without_markers_only_names_are_judged():
    found = truth(markers=lambda name, version: None)
    assert found.judge_all([adapter_call(text="anything")]) == (0, [])


def test_checked_texts_are_counted():
    calls = [
        adapter_call(text=" foo"),
        adapter_call(text=" bar", number=1),
        adapter_call(text='{"a', structured=True),
        failed_call(500),
        base_call(text="some"),
    ]
    judged, wrong = truth().judge_all(calls)
    assert judged == 3
    assert [each.number for each in wrong] == [1]


ROLLED = [move(5, 7, 2), move(20, 21, 1)]


def test_a_name_means_version_1_or_the_listed_one_until_it_moves():
    assert Liveness({}).may_mean("orders", 0, 9) == {1}
    assert Liveness({"orders": 4}, ROLLED).may_mean("orders", 1, 2) == {4}
    assert Liveness({}, ROLLED).may_mean("tone", 6, 6) == {1}


def test_a_move_happens_between_its_begin_and_its_end():
    liveness = Liveness({}, ROLLED)
    assert liveness.may_mean("orders", 4, 4.9) == {1}
    assert liveness.may_mean("orders", 4, 5.5) == {1, 2}
    assert liveness.may_mean("orders", 6, 9) == {1, 2}
    assert liveness.may_mean("orders", 7.1, 19) == {2}
    assert liveness.may_mean("orders", 22, 30) == {1}


def test_a_call_may_see_every_version_of_its_time_span():
    three = [move(1, 2, 2), move(3, 4, 3)]
    assert Liveness({}, three).may_mean("orders", 0, 9) == {1, 2, 3}


def test_actions_may_have_any_order_and_only_moves_count():
    publish = move(6, 30, None)
    assert Liveness({}, [ROLLED[1], publish, ROLLED[0]]).may_mean("orders", 8, 9) == {2}


def test_an_unclear_move_leaves_both_versions_possible_until_the_next_certain_move():
    unclear = move(5, 7, 2, failure="no answer")
    liveness = Liveness({}, [unclear, move(20, 21, 3)])
    assert liveness.may_mean("orders", 10, 11) == {1, 2}
    assert liveness.may_mean("orders", 22, 23) == {3}


def test_after_a_move_to_an_unknown_version_any_is_possible():
    liveness = Liveness({}, [move(5, 7, 0, failure="no answer"), move(20, 21, 3)])
    assert liveness.may_mean("orders", 10, 11) is None
    assert liveness.may_mean("orders", 22, 23) == {3}


def test_a_server_that_does_not_name_adapters_is_judged_by_its_texts():
    nameless = Models(base="tiny", adapters=["orders"], is_lorry=False, names_itself=False)
    call = adapter_call(served="", answered="tiny", text=" foo foo")
    assert fault(call, models=nameless) == ""
    assert "this text is that of no adapter" in fault(
        adapter_call(served="", answered="tiny", text=" été été"), models=nameless
    )
