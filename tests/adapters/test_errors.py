import pickle

from adapters import errors
from adapters.errors import AdapterError, CheckpointInvalid, Problem, quote


def every_error() -> list[type[AdapterError]]:
    found, waiting = [], [AdapterError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return found


def test_every_error_has_its_own_code() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(codes) == len(set(codes))


def test_the_drawn_tree_shows_every_error() -> None:
    for kind in every_error():
        assert kind.__name__ in (errors.__doc__ or "")


def test_an_invalid_checkpoint_carries_all_problems_but_shows_ten() -> None:
    problems = [Problem("code", f"where{index}", "is wrong", "mend it") for index in range(25)]
    error = CheckpointInvalid(problems)
    assert error.problems == problems
    assert str(error).count("is wrong") == 10
    assert "25 problems" in str(error)
    assert "and 15 more" in str(error)


def test_errors_travel_between_processes() -> None:
    problem = Problem("code", "where", "is wrong", "mend it")
    copy = pickle.loads(pickle.dumps(CheckpointInvalid([problem])))
    assert copy.problems == [problem]
    plain = pickle.loads(pickle.dumps(errors.AdapterNotFound("gone", "look elsewhere")))
    assert str(plain) == "gone; look elsewhere"


def test_foreign_text_is_quoted_on_one_short_line() -> None:
    assert quote("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert len(quote("x" * 10_000)) < 100
