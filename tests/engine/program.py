"""vLLM's engine driven by JSON lines; tests/fixtures/engine_process.py is the other end.

The worker lives in this process, so that tests can inspect its KV cache and LoRA slots.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Engine:
    """Each public method is an operation."""

    def __init__(self, settings: dict[str, Any], adapters: str) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        arguments = EngineArgs(
            **settings,
            skip_tokenizer_init=True,
            enable_lora=True,
            disable_log_stats=False,
            use_tqdm_on_load=False,
        )
        self._engine = LLMEngine.from_engine_args(arguments)
        worker = self._engine.collective_rpc(lambda worker: worker)[0]
        self._runner = worker.model_runner
        self._manager = self._runner.lora_manager._adapter_manager
        self._adapters = Path(adapters)
        self._ids: dict[str, int] = {}
        self._last_id = 0
        self._last_request = 0

    def run(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        waiting = sorted(enumerate(requests), key=lambda pair: pair[1]["arrives"])
        places: dict[str, int] = {}
        outputs: dict[int, Any] = {}
        step = 0
        try:
            while waiting or self._engine.has_unfinished_requests():
                while waiting and waiting[0][1]["arrives"] <= step:
                    place, request = waiting.pop(0)
                    places[self._add(request)] = place
                for output in self._engine.step():
                    outputs[places[output.request_id]] = output
                step += 1
        except Exception:
            self._engine.abort_request(list(places))  # so that they do not join the next run
            raise
        return [_as_answer(outputs[place]) for place in range(len(requests))]

    def load(self, adapter: str) -> None:
        assert self._engine.add_lora(self._lora_request(adapter))

    def unload(self, adapter: str) -> None:
        assert self._engine.remove_lora(self._ids.pop(adapter))

    def unload_all(self) -> None:
        for integer_id in self._engine.list_loras():
            assert self._engine.remove_lora(integer_id)
        self._ids.clear()

    def slots(self) -> list[str | None]:
        names = {integer_id: name for name, integer_id in self._ids.items()}
        return [names.get(integer_id) for integer_id in self._manager.lora_index_to_id]

    def slot_ranks(self) -> list[int]:
        ranks = [0] * self._manager.lora_slots
        for slot in range(len(ranks)):
            for tensor, rank_dimension in self._stacked():
                used = tensor[slot].movedim(rank_dimension, 0).flatten(1).ne(0).any(1).nonzero()
                ranks[slot] = max(ranks[slot], int(used.max()) + 1 if len(used) else 0)
        return ranks

    def poison_free_slots(self) -> int:
        free = [slot for slot, each in enumerate(self._manager.lora_index_to_id) if each is None]
        for slot in free:
            for tensor, _ in self._stacked():
                tensor[slot].fill_(float("nan"))
        return len(free)

    def non_finite_values_in_kv_cache(self) -> int:
        return sum(int((~cache.isfinite()).sum()) for cache in self._runner.kv_caches)

    def forget_prefixes(self) -> bool:
        return self._engine.reset_prefix_cache()

    def counter(self, name: str) -> int:
        (metric,) = (each for each in self._engine.get_metrics() if each.name == name)
        return metric.value

    def _add(self, request: dict[str, Any]) -> str:
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0,
            max_tokens=request["tokens"],
            ignore_eos=True,
            detokenize=False,
            logprobs=2,
            prompt_logprobs=0 if request["prompt_logprobs"] else None,
        )
        adapter = request["adapter"]
        self._last_request += 1
        name = str(self._last_request)
        self._engine.add_request(
            name,
            {"prompt_token_ids": request["prompt"]},
            parameters,
            lora_request=self._lora_request(adapter) if adapter else None,
        )
        return name

    def _lora_request(self, adapter: str) -> Any:
        from vllm.lora.request import LoRARequest

        if adapter not in self._ids:
            self._last_id += 1
            self._ids[adapter] = self._last_id
        integer_id = self._ids[adapter]
        return LoRARequest(f"{adapter}@{integer_id}", integer_id, str(self._adapters / adapter))

    def _stacked(self) -> Iterable[tuple[Any, int]]:
        """Every tensor with weights by slot, and the dimension of a slot that is the rank."""
        for module in self._manager.modules.values():
            for stacked, ranks in ((module.lora_a_stacked, -2), (module.lora_b_stacked, -1)):
                for tensor in stacked if isinstance(stacked, tuple) else (stacked,):
                    # The A of the embeddings is indexed by token, so its ranks are columns.
                    yield tensor, -1 if tensor.dim() == 3 else ranks


def _as_answer(output: Any) -> dict[str, Any]:
    (completion,) = output.outputs
    tops = [
        sorted((one.logprob for one in best.values()), reverse=True) for best in completion.logprobs
    ]
    prompt = output.prompt_logprobs or []
    return {
        "tokens": list(completion.token_ids),
        "logprobs": [
            position[token].logprob
            for token, position in zip(completion.token_ids, completion.logprobs, strict=True)
        ],
        "gaps": [best - second for best, second, *_ in tops],
        "prompt_logprobs": [
            position[token].logprob
            for token, position in zip(output.prompt_token_ids, prompt, strict=False)
            if position is not None  # the first token has none
        ],
        "cached": output.num_cached_tokens,
        "finish": completion.finish_reason,
    }


def _serve() -> None:
    # Keeps the output of libraries out of the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = None
    for line in sys.stdin:
        operation, arguments = json.loads(line)
        try:
            if engine is None:
                engine, result = Engine(**arguments), None
            else:
                result = getattr(engine, operation)(**arguments)
            reply = ["done", result]
        except Exception:  # noqa: BLE001 - the test gets the traceback
            reply = ["raised", traceback.format_exc()]
        print(json.dumps(reply), file=replies, flush=True)
        if engine is None:
            return


if __name__ == "__main__":
    _serve()
