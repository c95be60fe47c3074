"""vLLM serves a merged checkpoint, and answers as Lorry's engine does with base and adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_process import OURS, STOCK, EngineProcess, Request, assert_same
from shop import BASE, KEPT

from training.merge.merge import Options, merge
from training.merge.source import Source, pair
from training.shop.dataset import write_datasets

pytestmark = pytest.mark.slow

ADAPTER = "orders-json"
SETTINGS = {
    "dtype": "bfloat16",
    "max_model_len": 256,
    "max_lora_rank": 16,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 * 2**20,
    "enforce_eager": True,
}


def prompts(folder: Path, count: int) -> list[tuple[int, ...]]:
    from transformers import AutoTokenizer

    write_datasets(folder)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    lines = (folder / f"{ADAPTER}.heldout.jsonl").read_text().splitlines()[:count]
    turns = [json.loads(line)["messages"][:1] for line in lines]
    return [
        tuple(
            tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_dict=True
            ).input_ids
        )
        for turn in turns
    ]


def test_vllm_answers_from_the_merged_folder_as_from_base_and_adapter(tmp_path: Path) -> None:
    """Two engines, one after the other: NF4 with the adapter, and plain vLLM on the merged base."""
    merged = tmp_path / "merged"
    found = pair(Source(KEPT / ADAPTER), str(BASE), force=False)
    merge(found, merged, Options("nf4", torch.bfloat16), lambda line: None)
    asked = prompts(tmp_path, 12)
    served = EngineProcess(
        SETTINGS | {"model": str(BASE), "quantization": "bitsandbytes"},
        KEPT,
        [ADAPTER],
        tmp_path / "served",
        OURS,
    )
    try:
        expected = served.run([Request(prompt, ADAPTER, 32) for prompt in asked])
    finally:
        served.close()
    plain = EngineProcess(SETTINGS | {"model": str(merged)}, KEPT, [], tmp_path / "plain", STOCK)
    try:
        answers = plain.run([Request(prompt, None, 32) for prompt in asked])
    finally:
        plain.close()
    assert_same(expected, answers)
