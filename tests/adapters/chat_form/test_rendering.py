"""A chat template is a program of a stranger: it is run apart, and bounded in time and memory."""

import os
import signal
import threading
import time

import pytest

from adapters.chat_form import rendering
from adapters.chat_form.rendering import (
    Renderer,
    TemplateFailed,
    TemplatesUnavailable,
    TemplateTooComplex,
)

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
MESSAGES = {"messages": [{"role": "user", "content": "hi <b>é"}]}
CONTENT = "{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def renderer():
    renderer = Renderer()
    yield renderer
    renderer.close()


def test_a_template_renders_as_often_as_it_is_asked(renderer) -> None:
    form = {"default": CONTENT + "{{ messages | tojson }}", "tool_use": "tools: {{ tools }}"}
    expected = 'hi <b>é[{"role": "user", "content": "hi <b>é"}]'
    for _ in range(3):
        assert renderer.render("a", form, "default", MESSAGES) == expected
    assert renderer.render("a", form, "tool_use", {"tools": [1]}) == "tools: [1]"


def test_what_a_template_uses_is_told(renderer) -> None:
    form = {"default": "{% if thinking %}" + CONTENT + "{% endif %}", "tool_use": "{{ tools }}"}
    described = renderer.describe("b", form)
    assert described.variables == ("messages", "thinking", "tools")
    assert not described.parts
    loop = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    assert renderer.describe("c", {"default": loop}).parts


@pytest.mark.parametrize(
    "bomb",
    [
        LOOP,
        "{{ 'a' * (10 ** 10) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}"
        "{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "{{ [1] * 10**9 }}",
    ],
)
def test_a_bomb_ends_its_own_process_only(renderer, bomb) -> None:
    renderer.render("d", {"default": CONTENT}, "default", MESSAGES)
    started = time.monotonic()
    with pytest.raises(TemplateTooComplex):
        renderer.render(bomb, {"default": bomb}, "default", MESSAGES)
    assert time.monotonic() - started < 20  # 2 s of processor time
    assert renderer.render("d", {"default": CONTENT}, "default", MESSAGES) == "hi <b>é"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{{ nothing.at_all }}", "undefined"),
        ("{{ '\\ud800' }}", "surrogates"),
    ],
)
def test_a_refusal_says_why(renderer, text, said) -> None:
    with pytest.raises(TemplateFailed, match=said):
        renderer.render(text, {"default": text}, "default", MESSAGES)


def test_a_loop_does_not_hold_up_other_forms(renderer) -> None:
    """And a form that met its limit can be asked again."""
    form = {"default": "{% if loop_now %}" + LOOP + "{% endif %}fine"}

    def bomb() -> None:
        with pytest.raises(TemplateTooComplex):
            renderer.render("e", form, "default", {"loop_now": True})

    thread = threading.Thread(target=bomb)
    thread.start()
    done = 0
    while thread.is_alive():
        assert renderer.render("d", {"default": CONTENT}, "default", MESSAGES) == "hi <b>é"
        done += 1
    thread.join()
    assert done > 10
    assert renderer.render("e", form, "default", {}) == "fine"


def test_more_forms_than_processes_are_rendered_by_many_threads(renderer) -> None:
    wrong = []

    def render(number: int) -> None:
        for turn in range(30):
            key = str((number * 7 + turn) % 40)
            text = renderer.render(key, {"default": key + "{{ x }}"}, "default", {"x": number})
            if text != f"{key}{number}":
                wrong.append(text)

    threads = [threading.Thread(target=render, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(renderer._children) <= 16


def test_a_process_that_ended_is_started_again(renderer) -> None:
    renderer.describe("f", {"default": "x"})
    renderer._process.kill()
    renderer._process.wait()
    assert renderer.render("g", {"default": "y"}, "default", {}) == "y"


def test_a_child_that_the_machine_ends_says_nothing_of_its_template(renderer) -> None:
    form = {"default": "{% if loop_now %}" + LOOP + "{% endif %}fine"}
    renderer.render("h", form, "default", {})
    pid = renderer._children["h"]._pid
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))  # as when memory runs out
    killer.start()
    with pytest.raises(TemplatesUnavailable):
        renderer.render("h", form, "default", {"loop_now": True})
    assert renderer.render("h", form, "default", {}) == "fine"


def test_a_child_that_ended_while_it_was_idle_says_nothing_of_its_template(renderer) -> None:
    renderer.describe("i", {"default": "fine"})
    os.kill(renderer._children["i"]._pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(TemplatesUnavailable):
        renderer.render("i", {"default": "fine"}, "default", {})
    assert renderer.render("i", {"default": "fine"}, "default", {}) == "fine"


def test_a_machine_that_is_slow_says_nothing_of_the_template(monkeypatch) -> None:
    monkeypatch.setattr(rendering, "_WALL_SECONDS", 0.5)
    renderer = Renderer()
    try:
        with pytest.raises(TemplatesUnavailable):
            renderer.render("loop", {"default": LOOP}, "default", {})
    finally:
        renderer.close()


def test_a_fork_that_is_refused_ends_no_other_child(monkeypatch, tmp_path) -> None:
    flaky = tmp_path / "worker.py"
    flaky.write_text(
        "import os, runpy\n"
        "fork, forks = os.fork, []\n"
        "def flaky():\n"
        "    forks.append(1)\n"
        "    if len(forks) == 2:\n"
        "        raise BlockingIOError(11, 'no more processes')\n"
        "    return fork()\n"
        "os.fork = flaky\n"
        f"runpy.run_path({str(rendering._WORKER)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(rendering, "_WORKER", flaky)
    renderer = Renderer()
    try:
        assert renderer.render("a", {"default": "x"}, "default", {}) == "x"
        process = renderer._process
        with pytest.raises(TemplatesUnavailable):
            renderer.render("b", {"default": "y"}, "default", {})
        assert renderer.render("b", {"default": "y"}, "default", {}) == "y"
        assert renderer.render("a", {"default": "x"}, "default", {}) == "x"
        assert renderer._process is process
    finally:
        renderer.close()


def test_a_prompt_that_is_longer_than_its_model_reads_does_not_leave_the_child() -> None:
    renderer = Renderer(1000)
    form = {"default": "{{ 'é' * n }}"}
    try:
        assert len(renderer.render("a", form, "default", {"n": 1000})) == 1000
        with pytest.raises(TemplateFailed, match="more than 1000 characters"):
            renderer.render("a", form, "default", {"n": 1001})
    finally:
        renderer.close()
