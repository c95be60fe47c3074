"""`lorry data check`: everything about a set, without training."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from training.cli import app

BASE = "examples/shop/base"
RUNNER = CliRunner()


def check(*arguments: str) -> tuple[int, str]:
    ran = RUNNER.invoke(app, ["data", "check", *arguments])
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    return ran.exit_code, ran.output


def check_json(*arguments: str) -> tuple[int, dict[str, Any]]:
    code, said = check(*arguments, "--json")
    return code, json.loads(said)


def write(path: Path, *answers: str, prompt: str = "two lamps") -> str:
    turns = ([("user", f"{prompt} {i}"), ("assistant", text)] for i, text in enumerate(answers))
    chats = ([{"role": role, "content": text} for role, text in each] for each in turns)
    path.write_text("".join(json.dumps({"messages": chat, "id": 1}) + "\n" for chat in chats))
    return str(path)


def test_a_good_set_is_counted(tmp_path: Path) -> None:
    code, facts = check_json(write(tmp_path / "set.jsonl", "a", "b", "c"), "--base", BASE)
    assert (code, facts["ok"], facts["problems"]) == (0, True, [])
    assert (facts["records"], facts["examples"], facts["forms"]) == (3, 3, {"messages": 3})
    assert facts["turns"] == {"user": 3, "assistant": 3}
    assert facts["unused"] == {"id": 3}
    tokens = facts["tokens"]
    assert tokens["total"] >= 3 * tokens["p50"] - 2
    assert 0 < tokens["p50"] <= tokens["p99"] <= tokens["max"]
    assert facts["answer_tokens"]["max"] < tokens["max"]
    assert facts["truncated"]["count"] == facts["duplicates"]["count"] == 0


def test_without_a_base_the_forms_are_checked(tmp_path: Path) -> None:
    code, facts = check_json(write(tmp_path / "set.jsonl", "a"))
    assert code == 0
    assert "tokens" not in facts


def test_a_malformed_line_is_reported_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", "a", "b")
    Path(path).write_text(Path(path).read_text() + "{\n")
    code, facts = check_json(path, "--base", BASE)
    assert (code, facts["ok"], facts["examples"]) == (2, False, 2)
    assert facts["problems"] == [
        {"source": path, "cause": "not JSON", "count": 1, "unit": "line", "numbers": [3]}
    ]
    code, said = check(path)
    assert code == 2
    assert f"error: {path}: line 3: not JSON\n" in said


def test_cut_answers_warn_and_answers_cut_to_nothing_fail(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", "a", "long " * 40)
    code, facts = check_json(path, "--base", BASE, "--max-length", "32")
    assert code == 0
    assert facts["truncated"] == {"count": 1, "places": f"{path}: line 2"}
    assert any("cut at max_length 32" in warning for warning in facts["warnings"])
    path = write(tmp_path / "set.jsonl", "a", prompt="two lamps " * 20)
    code, facts = check_json(path, "--base", BASE, "--max-length", "32")
    assert code == 2
    assert facts["filled_by_prompt"] == {"count": 1, "places": f"{path}: line 1"}


def test_leaks_from_another_set_fail(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", "a", "b")
    heldout = write(tmp_path / "heldout.jsonl", "c")
    code, facts = check_json(train, "--against", heldout)
    assert code == 2
    assert facts["leaks"] == {"count": 1, "places": f"{heldout}: line 1"}
    code, facts = check_json(train, "--against", write(tmp_path / "x.jsonl", "c", prompt="none"))
    assert (code, facts["leaks"]["count"]) == (0, 0)


def test_duplicates_are_reported_and_do_not_fail(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "set.jsonl", "a"))
    path.write_text(path.read_text() * 3)
    code, facts = check_json(str(path))
    assert (code, facts["duplicates"]) == (0, {"count": 2, "places": f"{path}: lines 2 and 3"})


@pytest.mark.parametrize(("base", "reason"), [("nowhere", "not_found"), (".", "invalid")])
def test_a_base_that_is_none_is_one_line_and_exit_code_two(
    tmp_path: Path, base: str, reason: str
) -> None:
    code, said = check(write(tmp_path / "set.jsonl", "a"), "--base", base)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert said.endswith(f"(base_{reason})\n")
