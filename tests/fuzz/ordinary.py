"""Ordinary calls with known answers, sent throughout: they must stay right and be answered.

An answer is known if it is greedy, came twice, and each of its tokens leads the next best one by a
margin that no rounding in another batch turns. An adapter's also has the form that it was taught.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2
from shop import ADAPTERS, BASE_NAME, MARKERS, Shop

_MARGIN = 0.1  # of log-probability
_TOKENS = 24
_SECONDS = 60.0
_EACH = 3  # of a model


@dataclass(frozen=True)
class Known:
    model: str
    prompt: str
    text: str


@dataclass
class Ordinary:
    """Asks the known questions in turn, until it is cancelled."""

    client: httpx2.AsyncClient
    known: list[Known]
    calls: int = 0
    refused: int = 0  # with a documented 503
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0

    async def ask_on(self) -> None:
        while True:
            for each in self.known:
                await self.ask(each)
                await asyncio.sleep(0.2)

    async def ask(self, known: Known) -> None:
        self.calls += 1
        began = time.monotonic()
        try:
            response = await _post(self.client, known.model, known.prompt)
        except httpx2.TransportError as error:
            self.wrong.append(f"{known.model}: {error!r} after {time.monotonic() - began:.1f} s")
            return
        self.longest = max(self.longest, time.monotonic() - began)
        if response.status_code == 503:
            self.refused += 1
        elif response.status_code != 200:
            self.wrong.append(f"{known.model}: {response.status_code} {response.text[:300]}")
        elif (text := _text(response.json())) != known.text:
            self.wrong.append(f"{known.model}: {text!r}, not {known.text!r}")


async def known_answers(client: httpx2.AsyncClient, shop: Shop) -> list[Known]:
    """Raises RuntimeError: a model has none."""
    found = []
    for model in (BASE_NAME, *ADAPTERS):
        source = model if model in ADAPTERS else ADAPTERS[0]
        pairs = shop.heldout(source, 24)
        answers = [await _known(client, model, prompt) for prompt, _ in pairs]
        certain = [each for each in answers if each is not None][:_EACH]
        if not certain:
            raise RuntimeError(f"{model} has no answer that is certain enough to compare")
        found += certain
    return found


async def _known(client: httpx2.AsyncClient, model: str, prompt: str) -> Known | None:
    answers = [(await _post(client, model, prompt)).json() for _ in range(2)]
    text = _text(answers[0])
    is_right = text.startswith(MARKERS[model]) if model in MARKERS else True
    is_known = is_right and text == _text(answers[1]) and _margin(answers[0]) > _MARGIN
    return Known(model, prompt, text) if is_known else None


def _margin(answer: Any) -> float:
    tokens = answer["choices"][0]["logprobs"]["content"]
    tops = [[each["logprob"] for each in token["top_logprobs"]] for token in tokens]
    return min(first - second for first, second in tops)


def _text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


async def _post(client: httpx2.AsyncClient, model: str, prompt: str) -> httpx2.Response:
    body = {
        "model": model if model == BASE_NAME else f"{model}@1",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": _TOKENS,
        "logprobs": True,
        "top_logprobs": 2,
    }
    return await client.post("/v1/chat/completions", json=body, timeout=_SECONDS)
