"""A side's engine: transformers' `generate` with PEFT, in the two ways PEFT serves many adapters.

Imported only in a side's process. Requests of one workload are of one length: no padding.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bench.model import Home
from bench.spec import Outcome, SideSpec
from bench.workload import Request

_BASE = "__base__"  # PEFT's name for "no adapter"


class PeftEngine:
    def __init__(self, spec: SideSpec, home: Home) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._home = home
        self._mixed = spec.kind == "peft-mixed"
        self._base = AutoModelForCausalLM.from_pretrained(home.base, dtype=torch.bfloat16).eval()
        self._model: Any = None

    def run(self, requests: Sequence[Request], output_tokens: int, rivals: bool) -> Outcome:
        if rivals:
            raise NotImplementedError("tokens that were level are not told here")
        start = time.perf_counter()
        self._load({request.adapter for request in requests if request.adapter})
        answer = self._run_mixed if self._mixed else self._run_switching
        tokens = answer(requests, output_tokens)
        return Outcome(time.perf_counter() - start, tokens)

    def close(self) -> None:
        pass

    def _load(self, names: set[str]) -> None:
        for name in sorted(names):
            folder = self._home.adapters / name
            if self._model is None:
                self._model = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
                self._model.eval()
            elif name not in self._model.peft_config:
                self._model.load_adapter(folder, adapter_name=name)

    def _run_mixed(self, requests: Sequence[Request], output_tokens: int) -> list[list[int]]:
        names = [request.adapter or _BASE for request in requests]
        return self._generate(requests, output_tokens, adapter_names=names)

    def _run_switching(self, requests: Sequence[Request], output_tokens: int) -> list[list[int]]:
        """One batch for each adapter, one after the other."""
        tokens: list[list[int]] = [[] for _ in requests]
        for adapter in dict.fromkeys(request.adapter for request in requests):
            places = [n for n, request in enumerate(requests) if request.adapter == adapter]
            with self._switched_to(adapter):
                answers = self._generate([requests[n] for n in places], output_tokens)
            for place, answer in zip(places, answers, strict=True):
                tokens[place] = answer
        return tokens

    def _switched_to(self, adapter: str | None) -> contextlib.AbstractContextManager[Any]:
        if adapter is not None:
            self._model.set_adapter(adapter)
        elif self._model is not None:
            manager: contextlib.AbstractContextManager[Any] = self._model.disable_adapter()
            return manager
        return contextlib.nullcontext()

    def _generate(
        self, requests: Sequence[Request], output_tokens: int, **options: Any
    ) -> list[list[int]]:
        prompts = torch.tensor([request.prompt for request in requests])
        model = self._base if self._model is None else self._model
        with torch.inference_mode():
            generated = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=output_tokens,
                do_sample=False,
                pad_token_id=0,
                **options,
            )
        answers: list[list[int]] = generated[:, prompts.shape[1] :].tolist()
        return answers
