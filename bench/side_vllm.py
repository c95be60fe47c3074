"""A side's engine: vLLM as the server builds it, without HTTP in front.

Imported only in a side's process, after prepare_environment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from adapters.checkpoint.base import LLAMA_LINEARS
from bench.model import Home
from bench.spec import Outcome, SideSpec
from bench.truth import level_with
from bench.workload import Request

_KV_CACHE_BYTES = 1024**3  # twice what the widest row needs
_MAX_MODEL_LEN = 2048
_MIN_CPU_LORAS = 32  # the server's default
_CANDIDATES = 5  # more than are ever level with one token
_STOP_SECONDS = 3


class VllmEngine:
    def __init__(self, spec: SideSpec, home: Home) -> None:
        self._home = home
        self._ids: dict[str, int] = {}
        self._calls = 0
        # One event loop for the engine's whole life: its tasks wait in it between workloads.
        self._runner = asyncio.Runner()
        self._engine = self._runner.run(_build(spec, home))

    def run(self, requests: Sequence[Request], output_tokens: int, rivals: bool) -> Outcome:
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=_CANDIDATES if rivals else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return self._runner.run(self._run(requests, sampling))

    def close(self) -> None:
        self._engine.shutdown(timeout=_STOP_SECONDS)
        self._runner.close()

    async def _run(self, requests: Sequence[Request], sampling: SamplingParams) -> Outcome:
        start = time.perf_counter()
        outputs = await asyncio.gather(*(self._answer(each, sampling) for each in requests))
        seconds = time.perf_counter() - start
        return Outcome(
            seconds,
            tokens=[list(output.token_ids) for output in outputs],
            rivals=[_rivals(output) for output in outputs] if sampling.logprobs else None,
        )

    async def _answer(self, request: Request, sampling: SamplingParams) -> Any:
        self._calls += 1
        answer = self._engine.generate(
            {"prompt_token_ids": request.prompt},
            sampling,
            str(self._calls),
            lora_request=self._lora_request(request.adapter),
        )
        *_, final = [output async for output in answer]
        return final.outputs[0]

    def _lora_request(self, adapter: str | None) -> LoRARequest | None:
        if adapter is None:
            return None
        number = self._ids.setdefault(adapter, len(self._ids) + 1)
        return LoRARequest(adapter, number, str(self._home.adapters / adapter))


async def _build(spec: SideSpec, home: Home) -> AsyncLLM:
    lora: dict[str, Any] = {}
    if spec.max_loras:
        lora = {
            "enable_lora": True,
            "max_loras": spec.max_loras,
            "max_cpu_loras": max(spec.max_loras, _MIN_CPU_LORAS),
            "max_lora_rank": spec.max_lora_rank,
            "lora_target_modules": sorted(LLAMA_LINEARS),
        }
    arguments = AsyncEngineArgs(
        model=str(home.base),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=_MAX_MODEL_LEN,
        kv_cache_memory_bytes=_KV_CACHE_BYTES,
        enable_prefix_caching=False,
        quantization=None if spec.quantization == "none" else spec.quantization,
        **lora,
    )
    config = arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return AsyncLLM.from_vllm_config(config, usage_context=UsageContext.OPENAI_API_SERVER)


def _rivals(output: Any) -> list[list[int]]:
    return [
        level_with(token, {other: entry.logprob for other, entry in candidates.items()})
        for token, candidates in zip(output.token_ids, output.logprobs, strict=True)
    ]
