"""transformers with PEFT behind OpenAI's /v1/completions, for comparison with Lorry.

    python -m loadtest.peers.peft_server BASE --port 8000 [--adapters NAME=FOLDER ...]

Up to 24 waiting calls form one batch with PEFT's mixed batches, and the next batch begins after the
longest answer: there is no continuous batching. Always greedy. A streamed answer arrives as one
piece at the end, so its first token is also its last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from loadtest.peers.peft_batch import Answer, Job, PeftBatch

MOST_AT_ONCE = 24


class Generator(Protocol):
    """Generates the answers of a batch; called in a thread."""

    def run(self, jobs: list[Job]) -> list[Answer]: ...


class Completion(BaseModel):
    """The supported fields of OpenAI's request; others are ignored."""

    model: str
    prompt: str | list[int]
    max_tokens: int = Field(default=16, ge=1, le=4096)
    stream: bool = False
    ignore_eos: bool = False


class Batcher:
    """Runs one batch after the other, each of all waiting calls."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._waiting: asyncio.Queue[tuple[Job, asyncio.Future[Answer]]] = asyncio.Queue()

    async def answer(self, job: Job) -> Answer:
        future = asyncio.get_running_loop().create_future()
        await self._waiting.put((job, future))
        answer: Answer = await future
        return answer

    async def run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MOST_AT_ONCE and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Job, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await asyncio.to_thread(self._generator.run, [job for job, _ in batch])
        except Exception as error:  # noqa: BLE001 - every waiting call must get it
            for _, future in batch:
                if not future.done():
                    future.set_exception(HTTPException(500, f"{type(error).__name__}: {error}"))
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():  # its client has disconnected
                future.set_result(answer)


def create_app(generator: Generator, base: str, adapters: list[str]) -> FastAPI:
    batcher = Batcher(generator)

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=running)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        cards = [{"id": base, "object": "model", "owned_by": "peft", "parent": None}]
        cards += [
            {"id": name, "object": "model", "owned_by": "peft", "parent": base} for name in adapters
        ]
        return {"object": "list", "data": cards}

    @app.post("/v1/completions")
    async def complete(body: Completion) -> Response:
        if body.model != base and body.model not in adapters:
            raise HTTPException(404, f"there is no model {body.model!r}")
        adapter = None if body.model == base else body.model
        answer = await batcher.answer(Job(body.prompt, adapter, body.max_tokens, body.ignore_eos))
        return _respond(body, answer)

    return app


def _respond(body: Completion, answer: Answer) -> Response:
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
    }
    choice = {"index": 0, "text": answer.text, "finish_reason": answer.finish_reason}
    document = {
        "id": f"cmpl-{time.monotonic_ns()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [choice],
    }
    if not body.stream:
        return JSONResponse(document | {"usage": usage})
    events = [document, document | {"choices": [], "usage": usage}]
    lines = [*map(json.dumps, events), "[DONE]"]
    return Response("".join(f"data: {line}\n\n" for line in lines), media_type="text/event-stream")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="base")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    pairs = (each.partition("=") for each in arguments.adapters)
    adapters = {name: Path(folder) for name, _, folder in pairs}
    generator = PeftBatch(arguments.base, adapters)
    app = create_app(generator, arguments.served_model_name, list(adapters))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
