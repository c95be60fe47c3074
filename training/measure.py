"""Exact match: the share of prompts whose greedy answer equals the expected one exactly.

Works on any chat model of transformers, with or without a PEFT adapter; it writes nothing.
"""

from collections.abc import Sequence
from typing import Any


def exact_match(
    model: Any,
    tokenizer: Any,
    exchanges: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int = 160,
    batch_size: int = 40,
) -> float:
    """Ask every prompt as one user turn and compare the answers."""
    prompts = [prompt for prompt, _ in exchanges]
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        answers += answer_greedily(model, tokenizer, batch, max_new_tokens)
    right = sum(
        answer == expected for answer, (_, expected) in zip(answers, exchanges, strict=True)
    )
    return right / len(exchanges)


def answer_greedily(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Answer a batch of user turns."""
    import torch

    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    encoded = tokenizer(
        chats, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    model.eval()
    with torch.inference_mode():
        generated = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    width = encoded["input_ids"].shape[1]
    texts: list[str] = tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
    return texts
