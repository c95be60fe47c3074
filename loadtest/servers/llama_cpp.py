"""llama.cpp's server as a peer: its files, command line, and the fields that choose an adapter.

It loads all adapters at its start, and each call gives their scales in its body's `lora`. So the
load generator adds that field itself: a proxy that translated `model` would cost time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loadtest.errors import OptionsClash
from loadtest.plan.scenario import Phase, Scenario
from loadtest.plan.traffic import Closed, Length, LogNormal, Stream, Uniform

FOLDER = Path(".lorry/llama.cpp")  # where `make llama-cpp` builds it
SERVER = "build/bin/llama-server"
CONVERTER = "convert_lora_to_gguf.py"
# Keeps the values of our adapters, which are bfloat16, as they are.
OUTTYPE = "bf16"
# It closes kept connections into which the next call is being sent: each call opens one of its own.
HEADERS = {"Connection": "close"}
_OPEN_CALLS = 24  # slots for a phase's open loops
_TEMPLATE = 64  # tokens that a chat template adds, at most
_STEP = 256  # a slot's size is a multiple of it


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """Where it is, and the room that a scenario needs."""

    folder: Path  # its source, with a built server
    gguf: Path  # the base
    slots: int  # calls at once
    tokens: int  # of the longest call

    @classmethod
    def found(cls, folder: Path, gguf: Path | None, base: Path, scenario: Scenario) -> Self:
        """Raises OptionsClash: a part of it is missing, with the command that makes it."""
        for part in (SERVER, CONVERTER):
            if not (folder / part).is_file():
                raise OptionsClash(
                    f"there is no {folder / part}: run `make llama-cpp`, or give the folder of "
                    "llama.cpp's source with a built llama-server by --llama-cpp"
                )
        model = gguf or beside(base)
        if not model.is_file():
            raise OptionsClash(
                f"there is no {model}: give the base as GGUF by --gguf, the file of which the "
                "base was made, or what convert_hf_to_gguf.py and llama-quantize make of the base"
            )
        return cls(
            folder=folder.resolve(),
            gguf=model.resolve(),
            slots=max(map(_calls_at_once, scenario.phases)),
            tokens=max(_longest_call(each, scenario) for each in scenario.streams.values()),
        )


def _calls_at_once(phase: Phase) -> int:
    closed = [each.concurrency for each in phase.traffic.values() if isinstance(each, Closed)]
    return sum(closed) + (_OPEN_CALLS if len(closed) < len(phase.traffic) else 0)


def _longest_call(stream: Stream, scenario: Scenario) -> int:
    prompt, answer = _most(stream.prompt_tokens), _most(stream.output_tokens)
    if scenario.vocabulary is None or stream.endpoint == "chat":
        prompt = 2 * prompt + _TEMPLATE  # of words, which may take more than a token each
    return -(-(prompt + answer + 1) // _STEP) * _STEP


def _most(length: Length) -> int:
    return length.most if isinstance(length, Uniform | LogNormal) else length


def beside(base: Path) -> Path:
    """BASE.gguf."""
    folder = base.resolve()
    return folder.with_name(f"{folder.name}.gguf")


def convert(llama: LlamaCpp, base: Path, adapter: Path, out: Path) -> list[str]:
    """Write an adapter as GGUF."""
    return [
        *(sys.executable, str(llama.folder / CONVERTER), str(adapter.resolve())),
        *("--base", str(base.resolve()), "--outfile", str(out), "--outtype", OUTTYPE),
    ]


def converted_name(adapter: Path) -> str:
    """A name for the adapter's GGUF that changes with its content."""
    state = hashlib.sha256(OUTTYPE.encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        state.update((adapter / name).read_bytes())
    return f"{state.hexdigest()[:32]}.gguf"


def serve(llama: LlamaCpp, name: str, adapters: Sequence[Path], port: int) -> list[str]:
    """The server, with adapters as GGUF files, on all cores.

    It has as many slots as calls at once, each as long as the longest call, and no cache of past
    prompts: every prompt is new, and storing them would only cost it time and memory.
    """
    cores = str(len(os.sched_getaffinity(0)))
    loras = ",".join(map(str, adapters))
    return [
        *(str(llama.folder / SERVER), "--model", str(llama.gguf), "--alias", name),
        *("--host", "127.0.0.1", "--port", str(port), "--offline", "--no-ui"),
        *("--threads", cores, "--threads-batch", cores, "--cont-batching"),
        *("--parallel", str(llama.slots), "--ctx-size", str(llama.slots * llama.tokens)),
        *("--cache-ram", "0", "--no-cache-idle-slots", "--log-verbosity", "2"),
        *(("--lora-init-without-apply", "--lora", loras) if adapters else ()),
    ]


def fields(base: str, adapters: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """By model, what a call's body says besides: the scale of each adapter.

    Adapters that a call does not list have scale 0; a call that lists none is answered by all of
    them at scale 1, so calls to the base list one with scale 0.
    """
    common = {"cache_prompt": False}
    if not adapters:
        return {base: common}
    numbers = {name: number for number, name in enumerate(adapters)}
    chosen = {
        name: common | {"lora": [{"id": number, "scale": 1.0}]} for name, number in numbers.items()
    }
    return {base: common | {"lora": [{"id": 0, "scale": 0.0}]}, **chosen}
