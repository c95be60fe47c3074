"""The process that compiles grammars: `python -m server.grammars.process FD`.

It loads the grammar library and the tokenizer once, then forks a child for each grammar. The child
compiles it and walks a few tokens through it, under a limit of processor time and of memory; if
the library crashes, hangs or fills the memory, only the child ends. What passes here is compiled
again by vLLM's engine, which then meets nothing new.

Over the socket FD come the settings (one line of JSON), then for each grammar the socket of its
own, on which the child says its pid, reads the grammar and writes `Verdict`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WALK_TOKENS = 16
_MASK_SECONDS = 0.05  # of processor time, for the tokens that may follow: the engine waits for it
_CANDIDATES = 256  # tokens tried at each step of the walk
_STACK_BYTES = (
    2 * 1024 * 1024
)  # less than vLLM's threads have: what overflows there, overflows here
_NICE = 5
_META = re.compile(r"[][\\.+*?()|{}^$#&~-]")  # regex_syntax::is_meta_character


@dataclass(frozen=True, slots=True)
class Start:
    """What the process is told at its start.

    `tokenizer` is the JSON of a `tokenizers` tokenizer (guidance) or of an xgrammar TokenizerInfo.
    `whitespace`: an answer may have white space wherever JSON allows it.
    """

    backend: str
    tokenizer: str
    vocabulary: int
    end_tokens: list[int]
    seconds: float
    memory_bytes: int
    whitespace: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problem` is empty if the grammar can be used; `kind` and `text` are what the engine gets."""

    problem: str
    kind: str
    text: str


class Refused(Exception):
    """The library does not take the grammar."""


# Takes a kind and a text, and returns them as the engine shall compile them.
Compile = Callable[[str, str], tuple[str, str]]


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server's to answer: this ends with its socket
    control = socket.socket(fileno=int(sys.argv[1]))
    with control.makefile("rb") as lines:
        start = Start(**json.loads(lines.readline()))
    compile_ = _BACKENDS[start.backend](start)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    control.sendall(b"1")
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=sockets[0]) as own:
            if os.fork() == 0:
                control.close()
                _run_child(own, start, compile_)


def _run_child(own: socket.socket, start: Start, compile_: Compile) -> None:
    status = 1
    try:
        own.sendall(os.getpid().to_bytes(4, "big"))
        kind, text = json.loads(_read_all(own))
        _limit(start)
        # In a thread, for the size of its stack.
        threading.stack_size(_STACK_BYTES)
        verdict = Verdict("", kind, text)

        def work() -> None:
            nonlocal verdict
            verdict = _judge(kind, text, compile_)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        own.sendall(json.dumps([verdict.problem, verdict.kind, verdict.text]).encode())
        status = 0
    finally:
        os._exit(status)


def _judge(kind: str, text: str, compile_: Compile) -> Verdict:
    try:
        kind, text = compile_(kind, text)
    except KeyError as error:
        return Verdict(f"it lacks {error}", kind, text)
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        return Verdict(str(error).strip() or type(error).__name__, kind, text)
    return Verdict("", kind, text)


def _read_all(own: socket.socket) -> bytes:
    parts = []
    while part := own.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def _limit(start: Start) -> None:
    """Limit this child; the kernel ends it at a limit, in whatever code it is."""
    with suppress(OSError):
        os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    ceiling = in_use + start.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, start.seconds)


def _guidance(start: Start) -> Compile:
    import llguidance
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer(start.tokenizer, start.vocabulary, start.end_tokens or None)

    def of_schema(text: str) -> str:
        options: Any = {"whitespace_flexible": start.whitespace}
        return str(LLMatcher.grammar_from_json_schema(text, defaults=options))

    def serialize(kind: str, text: str) -> str:
        # As vllm.v1.structured_output.backend_guidance.serialize_guidance_grammar does.
        if kind in ("json", "json_object"):
            return of_schema(text or '{"type": "object"}')
        if kind == "structural_tag":
            return _structural_tags(text, of_schema)
        return str(llguidance.grammar_from(kind, text))  # type: ignore[arg-type]

    def compile_(kind: str, text: str) -> tuple[str, str]:
        if kind == "choice":  # as one pattern: a rule may have no more than 2,000 alternatives
            kind, text = "regex", "|".join(_META.sub(r"\\\g<0>", c) for c in json.loads(text))
        matcher = LLMatcher(tokenizer, serialize(kind, text), log_level=0)
        if problem := matcher.get_error():
            raise Refused(problem)

        def mask() -> bytes:
            return bytes(matcher.compute_bitmask())

        _walk(mask, matcher.consume_token, matcher.is_stopped, start.vocabulary)
        if problem := matcher.get_error():
            raise Refused(problem)
        return kind, text

    return compile_


def _structural_tags(text: str, of_schema: Callable[[str], str]) -> str:
    import llguidance

    document = json.loads(text)
    if not isinstance(document, dict) or not {"structures", "triggers"} <= document.keys():
        raise Refused("a structural tag needs `structures` and `triggers` with this backend")
    tags = []
    for each in document["structures"]:
        trigger = next((t for t in document["triggers"] if each["begin"].startswith(t)), None)
        if trigger is None:
            raise Refused(f"no trigger begins {each['begin']!r}")
        grammar = of_schema(json.dumps(each["schema"]))
        tag = llguidance.StructTag(
            trigger=trigger, begin=each["begin"], grammar=grammar, end=each["end"]
        )
        tags.append(tag)
    if not tags:
        raise Refused("it has no tags")
    return str(llguidance.StructTag.to_grammar(tags))


def _xgrammar(start: Start) -> Compile:
    import numpy as np
    import xgrammar
    from xgrammar import GrammarCompiler, GrammarMatcher, TokenizerInfo

    info = TokenizerInfo.deserialize_json(start.tokenizer)
    compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile_one(kind: str, text: str) -> Any:
        # As vllm.v1.structured_output.backend_xgrammar.XgrammarBackend.compile_grammar does.
        if kind in ("json", "json_object"):
            schema = text or '{"type": "object"}'
            return compiler.compile_json_schema(schema, any_whitespace=start.whitespace)
        if kind == "regex":
            return compiler.compile_regex(text)
        if kind == "structural_tag":
            return _compile_tags(xgrammar, compiler, json.loads(text))
        return compiler.compile_lark(text) if kind == "lark" else compiler.compile_grammar(text)

    def compile_(kind: str, text: str) -> tuple[str, str]:
        matcher = GrammarMatcher(compile_one(kind, text), override_stop_tokens=start.end_tokens)
        bitmask = xgrammar.allocate_token_bitmask(1, start.vocabulary)

        def mask() -> bytes:
            matcher.fill_next_token_bitmask(bitmask)
            return np.asarray(bitmask).tobytes()

        _walk(mask, matcher.accept_token, matcher.is_terminated, start.vocabulary)
        return "grammar" if kind == "lark" else kind, text

    return compile_


def _compile_tags(xgrammar: Any, compiler: Any, document: Any) -> Any:
    if "structures" not in document:
        return compiler.compile_structural_tag(json.dumps(document))
    tags = [
        xgrammar.StructuralTagItem(
            begin=each["begin"], schema=json.dumps(each["schema"]), end=each["end"]
        )
        for each in document["structures"]
    ]
    return compiler.compile_structural_tag(tags, document["triggers"])


_BACKENDS: dict[str, Callable[[Start], Compile]] = {"guidance": _guidance, "xgrammar": _xgrammar}


def _walk(
    mask: Callable[[], bytes],
    take: Callable[[int], Any],
    ended: Callable[[], bool],
    vocabulary: int,
) -> None:
    """Take some tokens that the grammar allows, as the engine will; raises Refused if that is slow.

    The steps are the same for the same grammar: tokens are tried in a fixed order.
    """
    for step in range(_WALK_TOKENS):
        if ended():
            return
        started = time.thread_time()
        allowed = mask()
        if time.thread_time() - started > _MASK_SECONDS and step > 0:  # the first one warms up
            raise Refused("it is too complex: its next tokens take too long to find")
        token = _choose(allowed, vocabulary, step)
        if token is None:
            return
        take(token)


def _choose(allowed: bytes, vocabulary: int, step: int) -> int | None:
    stride = max(vocabulary // _CANDIDATES, 1)
    scattered = range((step * 7919) % stride, vocabulary, stride)
    tokens = itertools.chain(scattered, range(vocabulary))
    return next((each for each in tokens if allowed[each >> 3] >> (each & 7) & 1), None)


if __name__ == "__main__":
    main()
