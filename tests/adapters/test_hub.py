"""Adapters from the Hugging Face hub, by the command, against a server that speaks its API."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, Repo, running

WEIGHTS = "adapter_model.safetensors"
FETCH = "import huggingface_hub as h; [h.hf_hub_download('acme/sql', n) for n in {files!r}]"


@pytest.fixture
def hub(kit) -> Iterator[Hub]:
    draft = kit.build()
    files = {
        "adapter_config.json": json.dumps(draft.config).encode(),
        WEIGHTS: kit.encode(draft.tensors),
        "README.md": b"# hello",
        "training_args.bin": b"pickle",
    }
    with running({"acme/sql": Repo(files, ("main", "v1"))}) as hub:
        yield hub


def run(hub: Hub, folder: Path, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own, because huggingface_hub reads its settings when it is imported.
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=hub.environment(folder / "hf", **env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def publish(
    hub: Hub, source: str, base: Path, folder: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    words = ["publish", source, "--name", "sql", "--base", base, "--store", folder / "store"]
    return run(hub, folder, "-m", "lorry", "adapters", *words, "--json", **env)


def test_a_revision_on_the_hub_is_published_and_recorded_as_its_commit(
    hub, base_folder, tmp_path
) -> None:
    done = publish(hub, "hf://acme/sql@v1", base_folder, tmp_path)
    assert done.returncode == 0, (done.stderr, hub.asked)
    facts = json.loads(done.stdout)
    source = {"url": "hf://acme/sql@v1", "commit": COMMIT}
    assert facts["provenance"] == {"source": source}
    assert hub.downloads() == {"adapter_config.json", WEIGHTS}
    gone = publish(hub, "hf://acme/sql@v2", base_folder, tmp_path)
    assert gone.returncode == 2
    assert "(source_not_found)" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_offline_an_adapter_is_published_from_the_hubs_cache(hub, base_folder, tmp_path) -> None:
    fetched = run(hub, tmp_path, "-c", FETCH.format(files=["adapter_config.json", WEIGHTS]))
    assert fetched.returncode == 0, fetched.stderr
    hub.asked.clear()
    done = publish(hub, "hf://acme/sql", base_folder, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    source = {"url": "hf://acme/sql", "commit": COMMIT}
    assert json.loads(done.stdout)["provenance"] == {"source": source}
    assert hub.asked == []
    gone = publish(hub, "hf://acme/other", base_folder, tmp_path, HF_HUB_OFFLINE="1")
    assert gone.returncode == 2
    assert "HF_HUB_OFFLINE" in gone.stderr
    assert "(source_not_found)" in gone.stderr
