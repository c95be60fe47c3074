"""`lorry limits` and `lorry usage`, on a store and on a running server."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

import lorry
from adapters.catalog import Catalog
from adapters.catalog.usage import Amounts, UsageId, write_usage

HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def ask(store_with_orders):
    """Runs a command on a store with the adapter orders; returns its exit code and output."""

    def ask(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(lorry.app, [*words, "--store", str(store_with_orders)])
        return done.exit_code, done.output

    with Catalog.open(store_with_orders) as catalog:
        catalog.usage.prepare()
        used = {
            UsageId(HOUR, "ann", "orders", 1): Amounts(3, 1, 30, 60, 10, 1.5),
            UsageId(HOUR, "bob", "base", 0): Amounts(1, 0, 5, 6, 0, 0.25),
        }
        with catalog.usage.writing() as connection:
            write_usage(connection, "a server", used)
    return ask


def test_limits_are_set_listed_and_removed(ask):
    words = ("--adapter", "orders", "--rpm", "600", "--budget-tokens", "50M/month")
    assert ask("limits", "set", *words) == (
        0,
        "orders  all callers  600 requests a minute, 50000000 tokens a month\n",
    )
    assert json.loads(ask("limits", "list", "--json")[1]) == [
        {
            "adapter": "orders",
            "key": None,
            "requests_per_minute": 600,
            "tokens_per_minute": None,
            "in_flight": None,
            "budget": {"tokens": 50_000_000, "period": "month"},
        }
    ]
    assert ask("limits", "remove", "--adapter", "orders")[0] == 0
    assert ask("limits", "list") == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "--adapter", "orders"), "give at least one limit"),
        (("set", "--adapter", "nobody", "--rpm", "1"), "adapter_not_found"),
        (("set", "--adapter", "orders", "--key", "nobody", "--rpm", "1"), "key_not_found"),
        (("set", "--adapter", "orders", "--budget-tokens", "much"), "key_invalid"),
        (("remove", "--adapter", "orders"), "limit_not_found"),
    ],
)
def test_what_can_not_be_is_told_and_is_no_traceback(ask, words, said):
    code, output = ask("limits", *words)
    assert code == 2
    assert said in output


def test_usage_as_a_table_as_json_and_as_csv(ask):
    code, table = ask("usage", "--by", "key,adapter,version")
    assert code == 0
    assert [line.split()[:4] for line in table.splitlines()[1:]] == [
        ["ann", "orders", "1", "3"],
        ["bob", "base", "0", "1"],
    ]
    rows = json.loads(ask("usage", "--json", "--by", "key", "--key", "ann")[1])
    assert rows == [
        {
            "key": "ann",
            "calls": 3,
            "failed": 1,
            "prompt_tokens": 30,
            "generation_tokens": 60,
            "cached_prompt_tokens": 10,
            "engine_seconds": 1.5,
        }
    ]
    read = list(csv.DictReader(io.StringIO(ask("usage", "--csv", "--by", "hour")[1])))
    assert [(each["hour"], each["calls"]) for each in read] == [(f"{HOUR:%Y-%m-%dT%H:00Z}", "4")]
    assert ask("usage", "--since", "2020-01-01", "--until", "2020-02-01") == (
        0,
        "nothing was used\n",
    )


@pytest.mark.parametrize(
    ("words", "said"), [(("--by", "colour"), "bad_field"), (("--since", "then"), "bad_moment")]
)
def test_a_question_that_makes_no_sense_is_refused(ask, words, said):
    code, output = ask("usage", *words)
    assert (code, said in output) == (2, True)


def test_usage_of_a_store_that_never_served_is_empty_and_makes_no_file(tmp_path):
    with Catalog.open(tmp_path) as catalog:
        assert catalog.usage.report(["key"], HOUR) == []
    assert not [path for path in tmp_path.iterdir() if "usage" in path.name]


def test_usage_is_in_the_backup(store_with_orders, ask, tmp_path):
    from adapters.backup import copy_store

    copy_store(store_with_orders, tmp_path / "backup")
    with Catalog.open(tmp_path / "backup", create=False) as catalog:
        assert catalog.usage.report([], HOUR)[0]["calls"] == 4
