"""A request whose answer has not begun outlives the engine's process; vLLM's part is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.store import Store
from server.call import Lease, Sequence, current_call
from server.engine.interface import EngineGone
from server.errors import Unavailable
from server.presence import Presence
from server.suspects import Suspects

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

DIES = object()


class Gate:
    """Lets requests enter while the engine is there; remembers whether they came again."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self.again: list[bool] = []
        self.leases: list[Lease] = []

    @asynccontextmanager
    async def enter(self, call: Any, work: Any) -> AsyncIterator[Lease]:
        self.again.append(work.is_again)
        try:
            await self._presence.wait()
        except EngineGone:
            raise Unavailable("the engine ended", code="engine_dead") from None
        number = len(self.again)
        name = f"red@1#d.{number}"
        self.leases.append(Lease(name, SimpleNamespace(lora_name=name)))
        yield self.leases[-1]


class Play(SimpleNamespace):
    engine: Any
    gate: Gate
    call: Any
    script: list[list[Any]]
    asked: list[Any]

    async def ask(self, request_id: str = "r") -> list[Any]:
        params = SimpleNamespace(structured_outputs=None, n=1, max_tokens=4)
        given = SimpleNamespace(lora_name="red@1")
        prompt = {"prompt_token_ids": [1]}
        outputs = self.engine.generate(prompt, params, request_id, lora_request=given)
        return [output async for output in outputs]

    def die(self) -> None:
        self.engine.output_handler.set_result(None)

    def come_back(self) -> None:
        self.engine.output_handler = asyncio.get_running_loop().create_future()
        self.engine.output_handler.add_done_callback(lambda _: self.engine.presence.leave())
        self.engine.presence.come_back()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    from server.engine.chat_forms import ChatForms
    from server.engine.client import Engine

    class Scripted(Engine):
        model_config = SimpleNamespace(max_model_len=64)
        engine_core = SimpleNamespace(resources=SimpleNamespace(engine_dead=False))

        def __del__(self) -> None:
            """AsyncLLM's would shut down an engine that was never built."""

    engine = Scripted.__new__(Scripted)
    engine.presence, engine.suspects = Presence(), Suspects()
    engine.chat_forms = ChatForms(Store(Path("unused")))
    call = SimpleNamespace(
        version=SimpleNamespace(label="red@1", chat_form=None),
        digest="d",
        lease=None,
        sequences=[],
        status=0,
        refusal=None,
        engine_error=None,
        late_status=0,
        error_code=None,
        request_id="id",
        response_model="red@1",
    )
    gate = Gate(engine.presence)
    engine._admission = gate
    play = Play(engine=engine, gate=gate, call=call, script=[], asked=[])

    async def generate(
        self: Any, prompt: Any, params: Any, request_id: str, *, lora_request: Any
    ) -> AsyncIterator[Any]:
        play.asked.append(lora_request.lora_name)
        call.sequences.append(Sequence(request_id, 1, SimpleNamespace()))
        for step in play.script.pop(0):
            if step is DIES:
                call.engine_error = "EngineDeadError"
                asyncio.get_running_loop().call_soon(play.die)
                raise EngineDeadError
            yield step

    monkeypatch.setattr(AsyncLLM, "generate", generate)
    token = current_call.set(call)
    yield play
    current_call.reset(token)


async def test_it_waits_for_the_next_engine_and_is_recorded_once(play: Play) -> None:
    play.come_back()
    play.call.sequences.append(other := Sequence("another prompt", 1, SimpleNamespace()))
    play.script = [[DIES], [DIES], ["a", "b"]]
    task = asyncio.create_task(play.ask())
    for _ in range(2):
        await asyncio.sleep(0.01)
        assert not task.done()
        play.come_back()
    assert await asyncio.wait_for(task, 1) == ["a", "b"]
    assert play.asked == ["red@1#d.1", "red@1#d.2", "red@1#d.3"]  # each loaded anew
    assert play.gate.again == [False, True, True]
    assert play.call.engine_error is None
    assert [each.engine_request_id for each in play.call.sequences] == ["another prompt", "r"]
    assert play.call.sequences[0] is other


@pytest.mark.parametrize(("script", "status"), [(["a", DIES], 0), ([DIES], 200)])
async def test_an_answer_that_has_begun_ends_with_the_engine(
    play: Play, script: list[Any], status: int
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    play.come_back()
    play.script, play.call.status = [script], status
    with pytest.raises(EngineDeadError):
        await play.ask()
    assert play.call.engine_error == "EngineDeadError"
    assert len(play.asked) == 1


async def test_a_lease_that_the_death_has_taken_is_not_used(play: Play) -> None:
    play.come_back()
    play.script = [["a"]]
    for _ in range(2):
        play.engine.suspects.blame([play.call, SimpleNamespace(digest="other")])
    async with play.engine.suspects.inside("someone else"):
        task = asyncio.create_task(play.ask())  # has its lease, and waits to be alone
        await asyncio.sleep(0.01)
        play.die()
        play.gate.leases[0].lost = True
        await asyncio.sleep(0)
        play.come_back()
    assert await asyncio.wait_for(task, 1) == ["a"]
    assert play.asked == ["red@1#d.2"]


async def test_poison_is_refused_instead_of_a_third_try(play: Play) -> None:
    from vllm.exceptions import VLLMValidationError

    play.come_back()
    play.script = [[DIES], [DIES]]
    task = asyncio.create_task(play.ask())
    for _ in range(2):
        await asyncio.sleep(0.01)
        play.engine.suspects.blame([play.call])
        play.come_back()
    with pytest.raises(VLLMValidationError):
        await asyncio.wait_for(task, 1)
    assert (play.call.refusal.status, play.call.refusal.code) == (422, "poison_request")
    assert len(play.asked) == 2


async def test_an_engine_that_does_not_come_back_refuses_it(play: Play) -> None:
    from vllm.exceptions import VLLMValidationError

    play.come_back()
    play.script = [[DIES]]
    task = asyncio.create_task(play.ask())
    await asyncio.sleep(0.01)
    play.engine.presence.end()
    with pytest.raises(VLLMValidationError):
        await asyncio.wait_for(task, 1)
    assert (play.call.refusal.status, play.call.refusal.code) == (503, "engine_dead")


async def test_a_caller_that_hangs_up_waits_no_more(play: Play) -> None:
    play.come_back()
    play.script = [[DIES]]
    task = asyncio.create_task(play.ask())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)


@pytest.mark.parametrize(
    ("code", "oom_kills", "words", "from_outside"),
    [
        (-9, 0, "its process was ended by SIGKILL", True),
        (-9, 1, "ended by SIGKILL, as the machine or its group ran out of memory", False),
        (-15, 0, "ended by SIGTERM", True),
        (0, 0, "ended with code 0", True),
        (1, 0, "ended with code 1", False),
        (-11, 0, "ended by SIGSEGV", False),
        (-6, 0, "ended by SIGABRT", False),
        (-63, 0, "ended by 63", False),
        (255, 0, "ended with code 255", True),  # the fork server has ended
        (None, 0, "it failed", False),
    ],
)
def test_how_a_process_has_ended(
    code: int | None, oom_kills: int, words: str, from_outside: bool
) -> None:
    from server.engine.process import describe, is_from_outside

    assert words in describe(code, oom_kills)
    assert is_from_outside(code, oom_kills) is from_outside
