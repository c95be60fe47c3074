"""Greedy answers of an OpenAI-compatible server, each with proof of who gave it.

An answer of another adapter, or of another version, than the one that was asked for is an error:
its score would be recorded under the wrong name.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from adapters.admin_http import is_loopback
from adapters.errors import AnswerUnclear, ServerRefused, ServerUnreachable
from training.data.forms import Example
from training.data.turns import Turn
from training.errors import TrainingError
from training.evaluation.answers import MAX_NEW_TOKENS, Answer, Report

CONCURRENCY: Final = 8
TIMEOUT_SECONDS: Final = 600.0
MOST_TRIES: Final = 20
LONGEST_WAIT_SECONDS: Final = 30.0
BUSY: Final = (429, 503)
REPORT_EVERY: Final = 50


class WrongAdapter(TrainingError):
    """A server answered with something else than the version that was asked for."""

    code = "wrong_adapter"


@dataclass(frozen=True, slots=True)
class Asked:
    """A model name of a server, and the facts by which its answers are known.

    `label` is NAME@VERSION, or the base's name; `digest` is that of the version, None for the base.
    """

    label: str
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible server: its address without /v1, and a key if it needs one."""

    url: str
    key: str | None = field(default=None, repr=False)

    def answer(
        self,
        asked: Asked,
        examples: Sequence[Example],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        concurrency: int = CONCURRENCY,
        report: Report = lambda line: None,
    ) -> list[Answer]:
        """Answer the prompt of each example, in their order, at temperature 0.

        Raises WrongAdapter, ServerUnreachable, ServerRefused or AnswerUnclear.
        """
        calls = [_make_call(asked.label, example, max_new_tokens) for example in examples]
        return asyncio.run(self._send_all(asked, calls, concurrency, report))

    def find_base(self) -> str:
        """The served name of the base; raises as `answer`."""
        with httpx2.Client(**self._options()) as client:
            try:
                response = client.get("/v1/models")
            except httpx2.HTTPError as error:
                raise _silent(self.url, error) from error
        listed = _read_json(response, self.url).get("data")
        for model in listed if isinstance(listed, list) else ():
            if isinstance(model, dict) and model.get("parent") is None and "id" in model:
                return str(model["id"])
        raise AnswerUnclear(f"{self.url} lists no base model", "check the address")

    async def _send_all(
        self, asked: Asked, calls: Sequence["_Call"], concurrency: int, report: Report
    ) -> list[Answer]:
        places = asyncio.Semaphore(concurrency)
        done = 0

        async def send(client: httpx2.AsyncClient, call: "_Call") -> Answer:
            nonlocal done
            async with places:
                answer = _read_answer(asked, await self._send(client, call), self.url)
            done += 1
            if done % REPORT_EVERY == 0 or done == len(calls):
                report(f"{done}/{len(calls)} answers")
            return answer

        try:
            async with (
                httpx2.AsyncClient(**self._options()) as client,
                asyncio.TaskGroup() as group,
            ):
                tasks = [group.create_task(send(client, call)) for call in calls]
        except* (TrainingError, AnswerUnclear, ServerRefused, ServerUnreachable) as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        return [task.result() for task in tasks]

    async def _send(self, client: httpx2.AsyncClient, call: "_Call") -> httpx2.Response:
        for _ in range(MOST_TRIES):
            try:
                response = await client.post(call.path, json=call.body)
            except httpx2.HTTPError as error:
                raise _silent(self.url, error) from error
            if response.status_code not in BUSY:
                break
            await asyncio.sleep(_wait(response))
        if not response.is_success:
            raise _refused(response)
        return response

    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.url.rstrip("/"),
            "headers": {"Authorization": f"Bearer {self.key}"} if self.key else {},
            "timeout": TIMEOUT_SECONDS,
            "trust_env": not is_loopback(urlsplit(self.url).hostname or ""),
        }


@dataclass(frozen=True, slots=True)
class _Call:
    path: str
    body: dict[str, Any]


def _make_call(model: str, example: Example, max_new_tokens: int) -> _Call:
    body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": max_new_tokens}
    if isinstance(example.prompt, str):
        return _Call("/v1/completions", body | {"prompt": example.prompt})
    body["messages"] = [_as_openai(turn) for turn in example.prompt]
    if example.tools:
        # With `none` the template still shows the tools, and a call comes as the model wrote it.
        body |= {"tools": list(example.tools), "tool_choice": "none"}
    return _Call("/v1/chat/completions", body)


def _as_openai(turn: Turn) -> Turn:
    """A turn with its tool calls as the API takes them: with an id, and arguments as text."""
    if "tool_calls" not in turn:
        return turn
    calls = [
        {"id": f"call_{number}", **call}
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for number, call in enumerate(turn["tool_calls"])
    ]
    return turn | {"tool_calls": calls}


def _read_answer(asked: Asked, response: httpx2.Response, url: str) -> Answer:
    body = _read_json(response, url)
    _check_attribution(asked, response.headers, body)
    try:
        (choice,) = body["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return Answer(
            str(text or ""),
            int(body["usage"]["completion_tokens"]),
            choice["finish_reason"] == "stop",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerUnclear(
            f"{url} answers unlike an OpenAI-compatible server", "check the address"
        ) from error


def _check_attribution(asked: Asked, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
    """Raises WrongAdapter unless body and headers name what was asked for.

    A server other than Lorry has no such headers: its `model` must do.
    """
    told = {"model": (body.get("model"), asked.label)}
    if "x-lorry-adapter" in headers:
        wanted = asked.label if asked.digest else "base"
        told["x-lorry-adapter"] = (headers["x-lorry-adapter"], wanted)
        told["x-lorry-adapter-digest"] = (headers.get("x-lorry-adapter-digest"), asked.digest)
    for where, (found, wanted) in told.items():
        if found != wanted:
            raise WrongAdapter(
                f"{asked.label} was asked, and the server's {where} is {found!r} instead of "
                f"{wanted!r}",
                "nothing was recorded: check that server and catalog belong together",
            )


def _wait(response: httpx2.Response) -> float:
    """Seconds to wait before the next try."""
    try:
        seconds = float(response.headers.get("retry-after", "1"))
    except ValueError:
        seconds = 1.0
    return min(max(seconds, 0.1), LONGEST_WAIT_SECONDS)


def _refused(response: httpx2.Response) -> ServerRefused:
    status = response.status_code
    try:
        error = response.json()["error"]
        said, code = str(error["message"]), str(error["code"])
    except (ValueError, KeyError, TypeError):
        said, code = f"the server answers with status {status}", ServerRefused.code
    return ServerRefused(said[:500].rstrip("."), code=code, status=status)


def _read_json(response: httpx2.Response, url: str) -> dict[str, Any]:
    if not response.is_success:
        raise _refused(response)
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise AnswerUnclear(
            f"{url} answers unlike an OpenAI-compatible server", "check the address"
        )
    return body


def _silent(url: str, error: Exception) -> ServerUnreachable:
    is_late = isinstance(error, httpx2.TimeoutException)
    said = "it did not answer in time" if is_late else (str(error) or type(error).__name__)
    return ServerUnreachable(
        f"{url} cannot be reached: {said}", "check the address, and that the server runs"
    )
