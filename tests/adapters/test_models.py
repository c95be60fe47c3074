"""A base by its folder or its id, against a server that speaks the hub's API.

Each look-up is a process of its own: huggingface_hub reads its settings when it is imported.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from disks import Forbidden, small_disk
from hub_server import COMMIT, Hub, Repo, running

from adapters.checkpoint.base import read_base
from adapters.errors import BaseNotFound, BaseUnreadable, BaseUnsupported
from adapters.models import as_id, find_model, name_model

LOOK_UP = """
import json, sys
from adapters import models
from adapters.errors import AdapterError
said = []
try:
    folder = models.find_model(sys.argv[1], getattr(models, sys.argv[2]), said.append)
    found = {"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}
except AdapterError as error:
    found = {"code": error.code, "text": str(error)}
print(json.dumps(found | {"said": said}))
"""
UNWANTED = {
    "README.md": b"# tiny",
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"code",
    "consolidated.safetensors": b"the same again",
    "onnx/model.safetensors": b"and again",
}
FORM = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{ }", "chat_template.jinja": b"hi"}
Look = Callable[..., SimpleNamespace]


@pytest.fixture
def files(base_folder: Path) -> dict[str, bytes]:
    return FORM | {path.name: path.read_bytes() for path in base_folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    made_from = {"base_model": ["acme/tiny"]}
    repos = {
        "acme/tiny": Repo(files | UNWANTED, ("main", "v1")),
        "acme/gated": Repo(files, gated=True),
        "acme/private": Repo(files, private=True),
        "acme/tiny-GGUF": Repo({"config.json": b"{}", "tiny-Q4_K_M.gguf": b""}, card=made_from),
        "acme/pickled": Repo({"config.json": b"{}", "pytorch_model.bin": b""}),
        "acme/empty": Repo({"README.md": b""}),
    }
    with running(repos) as hub:
        yield hub


@pytest.fixture
def look(hub: Hub, tmp_path: Path) -> Look:
    def look(text: str, parts: str = "WHOLE", home: Path | None = None, **env: str):
        hub.asked.clear()
        done = subprocess.run(
            [sys.executable, "-c", LOOK_UP, text, parts],
            env=hub.environment(home or tmp_path / "hf", **env),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return SimpleNamespace(**{"code": None, "text": ""} | json.loads(done.stdout))

    return look


def test_a_model_is_fetched_once_and_only_what_runs_no_code(hub, look, files) -> None:
    first = look("acme/tiny")
    assert first.files == sorted(files)
    assert hub.downloads() == set(files)
    assert first.said[0].startswith("fetching acme/tiny from the hub into ")
    assert first.said[-1].startswith("fetched acme/tiny: ")
    for again in ("acme/tiny", "hf://acme/tiny", "acme/tiny@v1", f"acme/tiny@{COMMIT}"):
        found = look(again)
        assert (found.folder, found.said) == (first.folder, [])
        assert hub.downloads() == set()


def test_offline_and_without_a_network_the_cache_is_enough_if_it_is_whole(hub, look) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    offline = {"HF_HUB_OFFLINE": "1"}
    assert look("acme/tiny", **offline).code == "base_not_cached"
    assert hub.asked == []
    assert look("acme/tiny", **nowhere).code == "base_unreachable"
    look("acme/tiny", "FORM")
    assert hub.downloads() == {"config.json", *FORM}
    assert look("acme/tiny", "FORM", **offline).code is None
    assert look("acme/tiny", **offline).code == "base_not_cached"
    whole = look("acme/tiny").folder
    for settings in (offline, nowhere):
        assert look("acme/tiny", **settings).folder == whole
    # A cache without the list of the model's files, as other tools and older versions leave it.
    shutil.rmtree(Path(whole).parent.parent / "trees")
    assert look("acme/tiny", **offline).folder == whole
    (Path(whole) / "model.safetensors").unlink()
    assert look("acme/tiny", **offline).code == "base_not_cached"


@pytest.mark.parametrize(
    ("text", "token", "code", "words"),
    [
        ("acme/nothing", "", "base_not_found", "check the spelling"),
        ("acme/nothing", "allowed", "base_not_found", "no folder 'acme/nothing' here"),
        ("acme/tiny@v2", "", "base_not_found", "no revision 'v2'"),
        ("acme/gated", "", "base_forbidden", "HF_TOKEN"),
        ("acme/gated", "other", "base_forbidden", "the model's page"),
        ("acme/gated", "allowed", None, ""),
        ("acme/private", "", "base_not_found", "HF_TOKEN"),
        ("acme/private", "allowed", None, ""),
        ("acme/tiny-GGUF", "", "base_unsupported", "it was made from, acme/tiny: `lorry serve`"),
        ("acme/pickled", "", "base_unsupported", "can run code"),
        ("acme/empty", "", "base_unreadable", "has no config.json"),
    ],
)
def test_what_the_hub_does_not_give_has_a_reason(look, text, token, code, words) -> None:
    found = look(text, **({"HF_TOKEN": token} if token else {}))
    assert found.code == code
    assert words in found.text


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failing_hub_is_unreachable_and_its_status_is_named(hub, look, status) -> None:
    hub.failing = status
    found = look("acme/tiny")
    assert found.code == "base_unreachable"
    assert f"it answered {status}" in found.text


def test_a_cache_that_cannot_be_written_is_named(look, tmp_path) -> None:
    (tmp_path / "file").touch()
    found = look("acme/tiny", home=tmp_path / "file" / "home")
    assert found.code == "cache_unwritable"
    assert "HF_HOME" in found.text
    assert str(tmp_path / "file") in found.text


def test_a_full_disk_is_named(look, hub, tmp_path) -> None:
    large = hub.repos["acme/tiny"].files | {"model-2.safetensors": bytes(4 << 20)}
    hub.repos["acme/large"] = Repo(large)
    try:
        with small_disk(tmp_path / "disk") as disk:
            found = look("acme/large", home=disk, PYTHONWARNINGS="ignore")
    except Forbidden as reason:
        pytest.skip(str(reason))
    assert found.code == "cache_unwritable"
    assert "No space left" in found.text


def test_a_folder_of_that_name_wins_over_an_id(base_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_id("acme/tiny") == ("acme/tiny", None)
    shutil.copytree(base_folder, "acme/tiny")
    assert as_id("acme/tiny") is None
    assert find_model("acme/tiny") == Path("acme/tiny")
    assert name_model("acme/tiny") == "tiny"


@pytest.mark.parametrize(
    "text", ["./acme/tiny", "../tiny", "/acme/tiny", "a/b/c", "tiny", "a/b@", "a/b:Q4_K_M", ""]
)
def test_what_can_be_no_id_is_a_missing_folder(text) -> None:
    with pytest.raises(BaseNotFound, match=r"no such folder.*ORG/NAME"):
        find_model(text)


def test_a_folder_in_the_hubs_cache_has_the_models_name(base_folder, tmp_path) -> None:
    snapshot = tmp_path / "models--Acme-AI--Tiny-1.5B" / "snapshots" / COMMIT
    shutil.copytree(base_folder, snapshot)
    assert name_model(str(snapshot)) == "Acme-AI/Tiny-1.5B"
    assert read_base(snapshot).name == "Acme-AI/Tiny-1.5B"
    (tmp_path / "link").symlink_to(snapshot)
    assert name_model(str(tmp_path / "link")) == "Acme-AI/Tiny-1.5B"
    with pytest.raises(BaseUnreadable, match=r"give Acme-AI/Tiny-1\.5B"):
        find_model(str(snapshot.parent.parent))


def test_the_config_of_a_llama_is_enough_to_judge_adapters(base_folder, tmp_path) -> None:
    shutil.copy(base_folder / "config.json", tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, bare = read_base(base_folder), read_base(tmp_path)
    assert (bare.digest, bare.linears) == (whole.digest, whole.linears)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Llama-3.1-8B-Instruct"),
        ("tiny.IQ2_XXS.gguf", "tiny"),
        ("qwen-UD-Q2_K_XL-00001-of-00002.GGUF", "qwen"),
        ("tiny-f16.gguf", "tiny"),
    ],
)
def test_a_gguf_file_is_refused_with_what_it_was_made_from(tmp_path, name, source) -> None:
    for text in (str(tmp_path / name), str(tmp_path)):
        with pytest.raises(BaseUnsupported, match=f"from, probably '{source}', in safetensors"):
            find_model(text)
        (tmp_path / name).touch()


def test_a_folder_of_pickles_is_refused_where_weights_are_needed(base_folder, tmp_path) -> None:
    shutil.copy(base_folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(BaseUnsupported, match="pickled"):
        find_model(str(tmp_path))
    assert find_model(str(tmp_path), ("config.json",)) == tmp_path


def test_a_text_that_is_too_long_for_a_path_is_no_model() -> None:
    with pytest.raises(BaseNotFound):
        find_model("a/" + "b" * 5000)
