"""The process that runs chat templates of adapters: `python worker.py FD`.

A template is a program of whoever made the adapter. This process forks a child for each form, which
compiles its templates and renders them, under a limit of processor time and of memory for each: a
template that loops, or fills the memory, ends its own child only.

The environment is that of transformers' `apply_chat_template`
(transformers.utils.chat_template_utils), and a test compares the two.

Over the socket FD come the sockets of the children. On its own, a child says its pid, reads the
templates (a line of JSON) and answers with what they use; then it renders, line by line. This
process holds the sockets too, and writes MET_LIMIT to that of a child which has met its limits.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, ext, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0  # of processor time, for one line
MEMORY_BYTES = 256 * 1024 * 1024
MAX_VARIABLES = 256
MAX_PROBLEM_CHARACTERS = 500
MET_LIMIT = b"\x01"  # in no line of JSON
_NICE = 5
_LIMIT_STATUS = 3
# Of processor time; a full stack or memory, in code that does not raise. Not SIGKILL: that is the
# machine, out of memory.
_LIMIT_SIGNALS = (signal.SIGPROF, signal.SIGSEGV, signal.SIGABRT)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent's to answer: this ends with its socket
    control = socket.socket(fileno=int(sys.argv[1]))
    ended, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # it writes to `wakeup`
    gc.freeze()
    control.sendall(b"1")
    children: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _reap(children)
        if control.fileno() not in ready:
            continue
        message, sockets, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        for each in sockets:
            own = socket.socket(fileno=each)
            try:
                pid = os.fork()
            except OSError:  # its caller sees the socket closed
                own.close()
                continue
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(ended)
                os.close(wakeup)
                for others in (control, *children.values()):
                    others.close()
                _run_child(own)
            children[pid] = own


def _reap(children: dict[int, socket.socket]) -> None:
    """Close the sockets of children that have ended, and say which ones have met their limits."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        with children.pop(pid) as own, suppress(OSError):
            if code == _LIMIT_STATUS or -code in _LIMIT_SIGNALS:
                own.send(MET_LIMIT, socket.MSG_DONTWAIT)


def _run_child(own: socket.socket) -> None:
    status = 1
    try:
        own.sendall(os.getpid().to_bytes(4, "big"))
        _limit()
        form: Form | None = None
        with own.makefile("rb") as lines:
            for line in lines:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                asked = json.loads(line)
                try:
                    if form is None:
                        form = Form(asked)
                        answer = form.describe()
                    else:
                        answer = {"text": form.render(*asked)}
                except (MemoryError, RecursionError):
                    raise
                except Exception as error:  # noqa: BLE001 - whatever a template raises
                    answer = {"problem": _explain(error)}
                text = json.dumps(answer).encode() + b"\n"
                signal.setitimer(signal.ITIMER_PROF, 0)
                own.sendall(text)
        status = 0
    except (MemoryError, RecursionError):
        status = _LIMIT_STATUS
    finally:
        os._exit(status)


def _limit() -> None:
    """Limit this child; the kernel ends it at a limit, in whatever code it is."""
    with suppress(OSError):
        os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    ceiling = in_use + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _explain(error: Exception) -> str:
    """For callers: what a template says by `raise_exception`, or what is wrong with it."""
    text = str(error) or type(error).__name__
    return text.encode(errors="replace").decode()[:MAX_PROBLEM_CHARACTERS]


class Form:
    """The compiled templates of one adapter, by name."""

    def __init__(self, templates: dict[str, str]) -> None:
        self._environment = make_environment()
        self._sources = templates
        self._templates = {
            name: self._environment.from_string(text) for name, text in templates.items()
        }

    def describe(self) -> dict[str, Any]:
        """What the templates use: variables, and messages' contents as texts or as parts."""
        trees = [self._environment.parse(text) for text in self._sources.values()]
        names = {name for tree in trees for name in meta.find_undeclared_variables(tree)}
        if len(names) > MAX_VARIABLES:
            raise ValueError(f"it uses more than {MAX_VARIABLES} variables")
        return {"variables": sorted(names), "parts": any(map(loops_over_contents, trees))}

    def render(self, name: str, context: dict[str, Any], most: int) -> str:
        text = self._templates[name].render(**context)
        if len(text) > most:
            raise ValueError(f"the prompt has more than {most} characters")
        text.encode()  # not the lone half of a surrogate pair
        return text


class _Generation(ext.Extension):
    """`{% generation %}`, which marks an answer for training, renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


def make_environment() -> Environment:
    """As transformers makes it, for each template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


def loops_over_contents(tree: nodes.Template) -> bool:
    """Whether a template takes a message's content as a list of parts: it loops over it.

    vllm.renderers.hf decides so too, by a walk whose time a template can make unbounded.
    """
    contents = {
        name
        for each in tree.find_all(nodes.Assign)
        for name in _names(each.target)
        if _is_content(each.node)
    }
    return any(_is_content(loop.iter, contents) for loop in tree.find_all(nodes.For))


def _names(target: nodes.Node) -> Iterator[str]:
    if isinstance(target, nodes.Name):
        yield target.name


def _is_content(node: nodes.Node | None, names: frozenset[str] | set[str] = frozenset()) -> bool:
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Name):
        return node.name == "content" or node.name in names
    return isinstance(node, nodes.Getattr) and node.attr == "content"


if __name__ == "__main__":
    main()
