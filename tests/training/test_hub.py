"""Training's commands on a base of the hub, against a server that speaks its API."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, Repo, running
from shop import BASE, KEPT

from training.base import file_digest

# One process for all: each would import torch anew.
LOOK_UPS = """
import json, sys
from pathlib import Path
from training.base import find_base, find_tokenizer
from training.estimate.shape import name_of, read_config
from training.merge.source import Source, pair

print(json.dumps({
    "layers": read_config("acme/tiny").num_hidden_layers,
    "named": name_of("acme/tiny@v1"),
    "tokenizer": sorted(path.name for path in find_tokenizer("acme/tiny").iterdir()),
    "address": find_base("acme/tiny", "tiny").address,
    "chosen": find_base("acme/tiny@v1", "tiny").address,
    "facts": find_base("acme/tiny", "tiny").facts(),
    "merged": pair(Source(Path(sys.argv[1])), None, force=False).base.facts(),
}))
"""
RUN = "from training.cli import app; app()"


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in BASE.iterdir() if path.is_file()}
    gguf = {"README.md": b"", "tiny-Q8_0.gguf": b""}
    repos = {"acme/tiny": Repo(files, ("main", "v1")), "acme/tiny-GGUF": Repo(gguf)}
    with running(repos) as hub:
        yield hub


def run(hub: Hub, home: Path, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=hub.environment(home, **env),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_base_is_found_by_its_id_and_known_by_it_and_its_commit(hub: Hub, tmp_path: Path) -> None:
    # Trained on the commit that its provenance names, as after `base: acme/tiny`.
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (KEPT / "orders-json").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    facts = json.loads((adapter / "lorry.json").read_text())
    facts["base"] |= {"repo": "acme/tiny", "commit": COMMIT}
    (adapter / "lorry.json").write_text(json.dumps(facts))

    done = run(hub, tmp_path / "hf", "-c", LOOK_UPS, adapter)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["layers"], found["named"]) == (4, "acme/tiny")
    assert "model.safetensors" not in found["tokenizer"]
    assert found["address"] == ["acme/tiny", None]
    assert found["chosen"] == ["acme/tiny", "v1"]
    for place in (found["facts"], found["merged"]):
        assert (place["repo"], place["commit"]) == ("acme/tiny", COMMIT)
        assert place["weights_digest"] == file_digest(BASE / "model.safetensors")


@pytest.mark.slow
def test_a_run_on_a_base_of_the_hub_is_published_for_its_id(hub: Hub, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: two\nbase: acme/tiny@v1\ndata: {train: train.jsonl}\n")
    words = [
        *("train", recipe, "--json", "--publish", "--store", tmp_path / "store"),
        *("--output", tmp_path / "out", "--set", "optimization.max_steps=1"),
    ]
    done = run(hub, tmp_path / "hf", "-c", RUN, *words)
    assert done.returncode == 0, done.stderr
    assert "fetching acme/tiny@v1 from the hub" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["published"]["base"] == "acme/tiny"
    assert facts["provenance"]["base"]["commit"] == COMMIT
    folder = Path(facts["folder"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/tiny", "v1")
    assert "base_model: acme/tiny\n" in (folder / "README.md").read_text()
    load = (
        "from peft import AutoPeftModelForCausalLM as M; import sys; M.from_pretrained(sys.argv[1])"
    )
    plain = run(hub, tmp_path / "hf", "-c", load, folder, HF_HUB_OFFLINE="1")
    assert plain.returncode == 0, plain.stderr


def test_a_base_that_is_refused_is_one_line_and_exit_code_2(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    words = ["data", "check", tmp_path / "train.jsonl", "--base", "acme/tiny-GGUF"]
    done = run(hub, tmp_path / "hf", "-c", RUN, *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("(base_unsupported)")
    assert "Traceback" not in done.stderr
