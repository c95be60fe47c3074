"""llama.cpp's server as a peer: what it gets, and what a real one answers."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from loadtest.errors import OptionsClash
from loadtest.markers.manifest import load_manifest
from loadtest.markers.marked import make_marked
from loadtest.plan.scenario import Scenario, Server, find_scenario
from loadtest.servers import llama_cpp
from loadtest.servers.command_lines import Setup
from loadtest.servers.llama_cpp import FOLDER, SERVER, LlamaCpp, beside
from loadtest.servers.serving import serving

ROOT = Path(__file__).parents[3]
SMOLLM2 = ROOT / "examples/smollm2/SmolLM2-135M-Instruct"
SCENARIO = find_scenario("llama-cpp")


@pytest.fixture
def built(tmp_path) -> Path:
    """A folder with the files that the peer needs."""
    folder = tmp_path / "llama.cpp"
    (folder / SERVER).parent.mkdir(parents=True)
    for name in (SERVER, llama_cpp.CONVERTER):
        (folder / name).touch()
    return folder


@pytest.fixture
def base(tmp_path) -> Path:
    """A base with its GGUF beside it."""
    base = tmp_path / "Model-1.5B"
    base.mkdir()
    (tmp_path / "Model-1.5B.gguf").touch()
    return base


def after(command: list[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(command) if name == flag]


def scenario_with(stream: dict[str, Any], *arrivals: dict[str, Any], **more: Any) -> Scenario:
    phases = [
        {"name": f"p{number}", "seconds": 1, "traffic": {"calls": arrival}}
        for number, arrival in enumerate(arrivals)
    ]
    document = {"name": "made", "streams": {"calls": stream}, "phases": phases}
    return Scenario.model_validate(document | more)


CLOSED = {"kind": "closed", "concurrency": 6}


def test_it_has_a_slot_for_each_caller_and_room_for_the_longest_call(built, base):
    llama = LlamaCpp.found(built, None, base, SCENARIO)
    assert (llama.slots, llama.tokens) == (24, 256)  # 160 and a step's rest
    command = llama_cpp.serve(llama, "base", [], 80)
    assert after(command, "--parallel") == ["24"]
    assert after(command, "--ctx-size") == [str(24 * 256)]


def test_words_and_drawn_lengths_get_room_to_spare(built, base):
    lengths = {"prompt_tokens": {"kind": "uniform", "least": 1, "most": 100}, "output_tokens": 10}
    words = scenario_with(lengths, CLOSED, {"kind": "constant", "rate": 1})
    llama = LlamaCpp.found(built, None, base, words)
    assert (llama.slots, llama.tokens) == (24, 512)  # 2 * 100, a template's 64, and 10
    assert LlamaCpp.found(built, None, base, scenario_with(lengths, CLOSED)).slots == 6


def test_what_is_missing_is_said_with_the_command_that_makes_it(built, base):
    with pytest.raises(OptionsClash, match=r"llama-server: run `make llama-cpp`"):
        LlamaCpp.found(built / "none", None, base, SCENARIO)
    beside(base).unlink()
    with pytest.raises(OptionsClash, match=r"Model-1\.5B\.gguf: give the base as GGUF by --gguf"):
        LlamaCpp.found(built, None, base, SCENARIO)
    assert LlamaCpp.found(built, built / SERVER, base, SCENARIO).gguf == built / SERVER


def test_the_server_loads_every_adapter_and_applies_none(built, base):
    llama = LlamaCpp.found(built, None, base, SCENARIO)
    command = llama_cpp.serve(llama, "base", [Path("a.gguf"), Path("b.gguf")], 80)
    assert after(command, "--lora") == ["a.gguf,b.gguf"]
    assert "--lora-init-without-apply" in command
    assert after(command, "--host") == ["127.0.0.1"]
    assert not [word for word in llama_cpp.serve(llama, "base", [], 80) if "lora" in word]


def test_a_call_gives_its_adapter_the_scale_one_and_all_others_none():
    """A call without `lora` would be answered by all adapters together."""
    fields = llama_cpp.fields("base", ["a", "b"])
    assert [each["lora"] for each in fields.values()] == [
        [{"id": 0, "scale": 0.0}],
        [{"id": 0, "scale": 1.0}],
        [{"id": 1, "scale": 1.0}],
    ]
    assert list(fields) == ["base", "a", "b"]
    assert all(each["cache_prompt"] is False for each in fields.values())
    assert llama_cpp.fields("base", []) == {"base": {"cache_prompt": False}}


def test_a_converted_adapter_is_known_by_its_content(tmp_path):
    for folder in ("one", "two", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "adapter_config.json").write_text("{}")
        (tmp_path / folder / "adapter_model.safetensors").write_text(folder[:1])
    one, two, other = (
        llama_cpp.converted_name(tmp_path / name) for name in ("one", "two", "other")
    )
    assert one != two
    assert one == other  # both hold "o"


@pytest.mark.slow
def test_a_real_server_answers_by_the_adapter_of_each_call(tmp_path):
    folder, gguf = ROOT / FOLDER, beside(SMOLLM2)
    if not (folder / SERVER).is_file():
        pytest.skip("needs `make llama-cpp`")
    if not (SMOLLM2.is_dir() and gguf.is_file()):
        pytest.skip("needs `make base-smollm2`")
    make_marked(SMOLLM2, tmp_path / "marked", 2, versions=1, rank=16, everywhere=True)
    manifest = load_manifest(tmp_path / "marked")
    setup = Setup(
        base=SMOLLM2,
        name="base",
        work=tmp_path / "work",
        options=Server(max_lora_rank=16),
        adapters={name: manifest.folder(name, 1) for name in manifest.names},
        llama_cpp=LlamaCpp.found(folder, None, SMOLLM2, SCENARIO),
    )
    with serving("llamacpp", setup) as served:
        answers = {model: ask(served.url, model, served.fields[model]) for model in served.fields}
        alone = ask(served.url, "base", served.fields["base"])
    for name in manifest.names:
        assert answers[name]["choices"][0]["text"] == manifest.marker(name, 1) * 8
    assert answers["base"]["choices"] == alone["choices"]
    for answer in answers.values():
        usage = answer["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (16, 8)
    shutil.rmtree(setup.work)


def ask(url: str, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": list(range(30_000, 30_016)),
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }
    answer = httpx2.post(f"{url}/v1/completions", json=body, timeout=60)
    answer.raise_for_status()
    return dict(answer.json())
