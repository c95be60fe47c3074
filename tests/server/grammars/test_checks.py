"""Grammars compiled by the real libraries, in their own process, which hostile ones may end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import weakref
from pathlib import Path

import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from server.errors import GrammarRefused, GrammarTooComplex, Unavailable
from server.grammars.bounds import Grammar
from server.grammars.checks import GrammarChecks
from server.grammars.process import Start

TOKENIZER = Path("examples/shop/base/tokenizer.json")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SLOW = {"type": "integer", "multipleOf": 1_000_003}  # 8 s of processor time
GIANT = {"type": "array", "items": {"type": "integer"}, "minItems": 100_000, "maxItems": 1_000_000}
DEEP = {"type": "string", "pattern": "(" * 50_000 + "a" + ")" * 50_000}


def guidance(seconds=2.0, mib=512, whitespace=True):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    vocabulary = tokenizer.get_vocab_size()
    memory = mib * 1024 * 1024
    return Start("guidance", tokenizer.to_str(), vocabulary, [1], seconds, memory, whitespace)


def xgrammar():
    from xgrammar import TokenizerInfo, VocabType

    vocabulary = [bytes([number]) for number in range(256)]
    info = TokenizerInfo(vocabulary, vocab_type=VocabType.RAW, stop_token_ids=[0])
    return Start("xgrammar", info.serialize_json(), 256, [0], 20.0, 2 << 30)


@pytest_asyncio.fixture
async def checks():
    checks = GrammarChecks(guidance)
    yield checks
    checks.close()


@pytest_asyncio.fixture
async def checks_without_whitespace():
    checks = GrammarChecks(lambda: guidance(whitespace=False))
    yield checks
    checks.close()


async def check(checks, kind, value, caller="me"):
    return await checks.check(Grammar.of(kind, value), caller)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json", SCHEMA),
        ("json_object", True),
        ("regex", r"\p{L}{1,2000}"),
        ("grammar", 'root ::= "a" | "b" root'),
        ("grammar", 'start: "a" | "b" start'),
        (
            "structural_tag",
            {
                "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
                "triggers": ["<f"],
            },
        ),
    ],
)
async def test_a_good_grammar_passes_unchanged(checks, kind, value):
    grammar = Grammar.of(kind, value)
    assert await checks.check(grammar, "me") == grammar


async def test_a_schema_is_compiled_with_white_space_or_without_as_by_the_engine(
    checks, checks_without_whitespace
):
    """Without it all that a schema forces comes at once, here without end."""
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    endless["additionalProperties"] = False
    await check(checks, "json", endless)
    with pytest.raises(GrammarRefused, match="Too many items"):
        await check(checks_without_whitespace, "json", endless)


async def test_choices_become_one_pattern_that_means_each_of_them_literally(checks):
    settled = await check(checks, "choice", ["a.b", "c|d", "é+", "x"])
    assert settled == Grammar("regex", r"a\.b|c\|d|é\+|x")
    await check(checks, "choice", [f"choice {number}" for number in range(5_000)])


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("regex", "(a", "unclosed group"),
        ("grammar", "root ::= nope", "nope"),
        ("json", {"type": "nope"}, "nope"),
        ("structural_tag", {"structures": [{"begin": "<f>"}], "triggers": ["<"]}, "lacks 'schema'"),
        ("structural_tag", {"tags": []}, "`structures` and `triggers`"),
        ("json", DEEP, "regex parse error"),
    ],
)
async def test_what_the_library_refuses_is_an_error_with_its_reason(checks, kind, value, says):
    with pytest.raises(GrammarRefused, match=says) as refused:
        await check(checks, kind, value)
    assert len(str(refused.value)) < 600
    with pytest.raises(GrammarRefused, match=says):
        await check(checks, kind, value)


async def test_a_refusal_that_is_remembered_does_not_keep_its_call(checks):
    class Body:
        """What a call holds."""

    async def refused():
        body = Body()
        with pytest.raises(GrammarRefused):
            await check(checks, "regex", "(a")
        return weakref.ref(body)

    bodies = [await refused(), await refused()]
    gc.collect()
    assert [body() for body in bodies] == [None, None]


@pytest.mark.parametrize("value", [SLOW, GIANT])
async def test_a_slow_grammar_is_ended_and_the_next_one_compiles(value):
    checks = GrammarChecks(lambda: guidance(seconds=0.2))
    try:
        await check(checks, "json", SCHEMA)
        started = time.monotonic()
        with pytest.raises(GrammarTooComplex, match="max_grammar_seconds"):
            await check(checks, "json", value)
        assert time.monotonic() - started < 8
        await check(checks, "regex", "[a-z]+")
    finally:
        checks.close()


async def test_a_crash_of_a_native_library_is_an_error_of_the_call_that_caused_it():
    """xgrammar recurses for each parenthesis: a segmentation fault, in a process of its own."""
    checks = GrammarChecks(xgrammar)
    try:
        await check(checks, "json", SCHEMA)
        with pytest.raises(GrammarTooComplex, match="crashed"):
            await check(checks, "json", DEEP)
        assert await check(checks, "regex", "[a-z]{2}") == Grammar("regex", "[a-z]{2}")
    finally:
        checks.close()


async def test_a_grammar_that_several_calls_wait_for_is_compiled_once(checks, monkeypatch):
    compiled = []
    original = GrammarChecks._compile

    async def counted(self, grammar):
        compiled.append(grammar)
        return await original(self, grammar)

    monkeypatch.setattr(GrammarChecks, "_compile", counted)
    await asyncio.gather(*(check(checks, "json", SCHEMA, f"caller {n}") for n in range(20)))
    await check(checks, "json", SCHEMA)
    assert len(compiled) == 1


async def test_a_caller_that_leaves_ends_its_compilation(checks):
    await check(checks, "json", SCHEMA)
    calls = [asyncio.create_task(check(checks, "json", SLOW)) for _ in range(2)]
    await asyncio.sleep(0.2)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    started = time.monotonic()
    for number in range(4):  # more than there are places
        await check(checks, "regex", f"a{number}")
    assert time.monotonic() - started < 1.5  # the limit is 2 s of processor time
    assert not checks._checks


def flooded(checks, count):
    """The tasks of a caller's slow checks, each of a grammar of its own."""
    return [
        asyncio.create_task(check(checks, "json", {**SLOW, "minimum": number}, "flood"))
        for number in range(count)
    ]


async def test_others_do_not_wait_for_a_caller_with_many_slow_grammars():
    checks = GrammarChecks(lambda: guidance(seconds=0.3))
    try:
        await check(checks, "json", SCHEMA)
        slow = flooded(checks, 20)
        await asyncio.sleep(0.01)
        assert checks.waiting == 18
        await check(checks, "regex", "[a-z]", "other")
        assert sum(call.done() for call in slow) <= 4
    finally:
        for call in slow:
            call.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        checks.close()


async def test_a_grammar_is_compiled_at_the_first_turn_of_those_who_wait_for_it():
    checks = GrammarChecks(lambda: guidance(seconds=0.3))
    try:
        await check(checks, "json", SCHEMA)
        flood = flooded(checks, 20)
        last = asyncio.create_task(check(checks, "regex", "[a-z]", "flood"))
        await asyncio.sleep(0.01)
        assert await check(checks, "regex", "[a-z]", "other") == await last
        assert sum(call.done() for call in flood) <= 4
        await asyncio.gather(*flood, return_exceptions=True)
        assert (checks.waiting, checks._checks) == (0, {})
    finally:
        checks.close()


async def test_a_call_whose_own_queue_is_full_is_answered_with_anothers(checks, monkeypatch):
    await check(checks, "json", SCHEMA)
    monkeypatch.setattr(checks._turns, "_each", 1)
    slow = flooded(checks, 3)  # two are compiled, one waits
    await asyncio.sleep(0.01)
    waits = asyncio.create_task(check(checks, "regex", "[a-z]", "other"))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await check(checks, "regex", "[0-9]", "flood")
    assert await check(checks, "regex", "[a-z]", "flood") == await waits
    for call in slow:
        call.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await asyncio.sleep(0)
    assert (checks.waiting, checks._checks) == (0, {})


async def test_a_process_that_was_killed_is_started_again(checks):
    await check(checks, "json", SCHEMA)
    os.kill(checks._process.pid, signal.SIGKILL)
    checks._process.wait()
    assert await check(checks, "regex", "[0-9]") == Grammar("regex", "[0-9]")


async def test_a_grammar_that_no_child_has_seen_is_not_remembered_as_too_complex(checks):
    await check(checks, "json", SCHEMA)
    os.kill(checks._process.pid, signal.SIGSTOP)
    waits = asyncio.create_task(check(checks, "regex", "[0-9]"))
    await asyncio.sleep(0.01)
    os.kill(checks._process.pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await waits
    checks._process.wait()
    assert await check(checks, "regex", "[0-9]") == Grammar("regex", "[0-9]")


async def test_a_process_that_does_not_start_is_a_503():
    checks = GrammarChecks(lambda: Start("nope", "", 1, [], 1.0, 1))
    with pytest.raises(Unavailable) as raised:
        await check(checks, "json", SCHEMA)
    assert raised.value.code == "grammars_busy"


async def test_the_process_ends_with_the_server(checks):
    await check(checks, "json", SCHEMA)
    process = checks._process
    checks._control.close()
    assert process.wait(5) == 0


async def test_a_caller_that_leaves_while_the_process_starts_leaves_it_to_the_next(checks):
    first = asyncio.create_task(check(checks, "json", SCHEMA))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    starting = checks._launching
    assert starting is not None
    await check(checks, "regex", "[0-9]")
    assert checks._control is starting.result()
