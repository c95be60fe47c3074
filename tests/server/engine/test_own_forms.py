"""The forms of adapters: turns, places, and what is remembered of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def forms(tmp_path: Path):
    from server.engine.chat_forms import ChatForms

    forms = ChatForms(Store(tmp_path))
    yield forms
    forms.close()


async def test_who_hangs_up_keeps_turn_and_place_until_the_thread_ends(forms, monkeypatch) -> None:
    """Else further chats of this adapter would take the threads of all others."""
    from server.engine import chat_forms

    started, go = threading.Semaphore(0), threading.Event()
    begun: list[str] = []

    def apply(name: str) -> str:
        begun.append(name)
        started.release()
        assert name != "slow" or go.wait(20)
        return name

    monkeypatch.setattr(chat_forms, "safe_apply_chat_template", apply)
    slow, other = (SimpleNamespace(turn=asyncio.Lock()) for _ in range(2))
    for _ in range(6):
        task = asyncio.create_task(forms.render(slow, "slow"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    try:
        assert begun == ["slow"]
        assert slow.turn.locked()
        assert await asyncio.wait_for(forms.render(other, "other"), 2) == "other"
    finally:
        go.set()
    assert await asyncio.wait_for(forms.render(slow, "again"), 2) == "again"
    assert not slow.turn.locked()


def test_a_form_without_a_template_stands_for_none() -> None:
    from server.engine.chat_forms import _stands_for

    def call(stand_in: str | None) -> Any:
        return SimpleNamespace(chat_form=SimpleNamespace(stand_in=stand_in))

    assert not _stands_for(call(None), None)
    assert not _stands_for(call("{{ x }}"), None)
    assert _stands_for(call("{{ x }}"), "{{ x }}")


def version_with(tmp_path: Path, template: str) -> Any:
    folder = Store(tmp_path).path(DIGEST)
    folder.mkdir(parents=True)
    text = json.dumps({"chat_template": template}).encode()
    (folder / "tokenizer_config.json").write_bytes(text)
    said = {"sha256": hashlib.sha256(text).hexdigest()}
    return SimpleNamespace(digest=DIGEST, label="red@1", chat_form=said)


@pytest.fixture
def compiled(forms, monkeypatch) -> list[str]:
    """The threads that have compiled."""
    threads: list[str] = []
    describe = forms._renderer.describe

    def note(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return describe(*arguments)

    monkeypatch.setattr(forms._renderer, "describe", note)
    return threads


async def test_a_form_is_compiled_once_for_all_who_ask(forms, tmp_path, compiled) -> None:
    version = version_with(tmp_path, "{{ messages }}")
    first = asyncio.create_task(forms.of(version))
    await asyncio.sleep(0)
    first.cancel()  # hangs up, and leaves the work to the others
    found = await asyncio.gather(*(forms.of(version) for _ in range(6)))
    assert len(set(map(id, found))) == len(compiled) == 1
    assert await forms.of(version) is found[0]
    assert compiled[0].startswith("lorry-templates")  # not asyncio's, which all others need


async def test_a_template_that_fails_is_not_tried_by_every_call(
    forms, tmp_path, compiled, monkeypatch
) -> None:
    from server.engine import chat_forms
    from server.errors import InvalidRequest

    monkeypatch.setattr(chat_forms, "_FAILED_SECONDS", 0.5)
    version = version_with(tmp_path, "{% for")
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            await forms.of(version)
    assert len(compiled) == 1
    await asyncio.sleep(0.6)
    with pytest.raises(InvalidRequest):
        await forms.of(version)
    assert len(compiled) == 2


async def test_a_machine_that_fails_is_tried_by_the_next_call(forms, tmp_path, monkeypatch) -> None:
    from adapters.chat_form.rendering import TemplatesUnavailable
    from server.errors import Unavailable

    version = version_with(tmp_path, "{{ messages }}")

    def fail(*_: Any) -> None:
        raise TemplatesUnavailable("no memory")

    with monkeypatch.context() as failing:
        failing.setattr(forms._renderer, "describe", fail)
        with pytest.raises(Unavailable):
            await forms.of(version)
    await asyncio.sleep(0.01)
    assert (await forms.of(version)).stand_in
