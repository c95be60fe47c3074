"""`lorry adapters inspect` says what publishing would say, at once, and publishes nothing."""

import json
import shutil
from pathlib import Path

import pytest
from foreign_folders import SERVABLE, dress
from publishing import publish
from typer.testing import CliRunner

from adapters.checkpoint.trainers import guess_trainer
from adapters.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inspect(base_folder, tmp_path, monkeypatch):
    """The exit code and the JSON of `lorry adapters inspect`."""
    monkeypatch.chdir(tmp_path)

    def inspect(folder: Path, *words: str):
        said = CliRunner().invoke(
            app, ["inspect", str(folder), "--base", str(base_folder), "--json", *words]
        )
        return said.exit_code, json.loads(said.stdout)

    return inspect


def test_a_sound_folder_is_described(inspect, kit, base_folder, tmp_path) -> None:
    draft = kit.build(ranks={"down_proj": 2}, pack=kit.f16)
    draft.config |= {"rank_pattern": {"down_proj": 2}, "use_rslora": True}
    folder = draft.write(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    code, found = inspect(folder)
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    version = publish(folder, name="a", store=tmp_path / "store", base=base_folder)
    assert (found["publishable"], found["digest"]) == (True, version.digest)
    assert (found["rank"], found["alpha"], found["rslora"]) == (4, 8.0, True)
    assert found["ranks"] == {"2": 2, "4": 4}
    assert found["scales"] == {"4.0": 4, "5.656854": 2}
    assert found["modules"] == {"down_proj": 2, "q_proj": 2, "v_proj": 2}
    assert found["dtypes"] == {"F16": 12}
    assert found["size_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert found["problems"] == found["warnings"] == found["changes"] == []


def test_what_publishing_changes_is_told_apart_from_doubts(
    inspect, kit, base_folder, tmp_path
) -> None:
    draft = kit.build()
    draft.tensors = {
        name.replace("lora_B.weight", "lora_B.default.weight"): raw
        for name, raw in draft.tensors.items()
    }
    draft.extra["chat_template.jinja"] = b"{{ raise_exception('no') }}"
    code, found = inspect(draft.write(tmp_path / "a"))
    assert code == 0
    assert [each["code"] for each in found["changes"]] == ["tensors_renamed"]
    assert [each["code"] for each in found["warnings"]] == ["template_refuses"]
    assert found["chat_form"] == {"template": "its own"}


def test_every_problem_is_reported_and_the_facts_still_are(inspect, kit, tmp_path) -> None:
    draft = kit.build()
    draft.config |= {"use_dora": True, "base_model_name_or_path": "other"}
    draft.extra["chat_template.jinja"] = b"{% for"
    code, found = inspect(draft.write(tmp_path / "a"), "--max-rank", "2")
    assert code == 1
    assert {each["code"] for each in found["problems"]} == {
        "dora_unsupported",
        "base_mismatch",
        "rank_too_large",
        "template_unusable",
    }
    assert found["digest"] is None
    assert found["modules"] == {"down_proj": 2, "q_proj": 2, "v_proj": 2}


def test_a_folder_with_nothing_to_read_is_refused(inspect, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    code, found = inspect(tmp_path / "empty")
    assert (code, found["trainer"]) == (1, "unknown")
    assert {each["code"] for each in found["problems"]} == {"file_missing"}


def test_people_get_lines(kit, base_folder, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    said = CliRunner().invoke(app, ["inspect", str(folder), "--base", str(base_folder)])
    assert said.exit_code == 0
    assert said.stdout.startswith("publishable yes\ntrainer     PEFT (a guess")
    assert "modules     down_proj x 2, q_proj x 2, v_proj x 2\n" in said.stdout
    no_base = CliRunner().invoke(app, ["inspect", str(folder), "--base", str(tmp_path / "no")])
    assert no_base.exit_code == 2
    assert "(base_not_found)" in no_base.stderr


def test_the_trainer_is_guessed_by_what_it_leaves(kit, base_folder, tmp_path) -> None:
    plain = kit.build().write(tmp_path / "plain")
    expected = {
        "PEFT 0.19": "PEFT",
        "TRL": "transformers or TRL",
        "Axolotl": "Axolotl",
        "LLaMA-Factory": "LLaMA-Factory",
        "Unsloth": "Unsloth",
        "ms-swift": "ms-swift",
    }
    found = {}
    for name in expected:
        folder = dress(plain, tmp_path / name, SERVABLE[name], base_folder)
        found[name] = guess_trainer(folder)
    assert found == expected
    (plain / "README.md").write_text("---\ntags:\n- trl\n- sft\n---\n")
    assert guess_trainer(plain) == "TRL"
    (plain / "README.md").unlink()
    shutil.copy(ROOT / "tests/fixtures/shop_adapters/orders-json/lorry.json", plain)
    assert guess_trainer(plain) == "lorry train"
    assert guess_trainer(ROOT / "tests/fixtures/mlx_adapter") == "mlx-lm"


def test_torchtunes_folder_is_peft_and_its_own_pickle_is_refused(
    inspect, kit, base_folder, tmp_path
) -> None:
    """torchtune 0.6 writes both; epoch_N has these files and keys (FullModelHFCheckpointer)."""
    draft = kit.build()
    kept = ("r", "lora_alpha", "target_modules", "base_model_name_or_path")
    draft.config = {key: draft.config[key] for key in kept} | {"peft_type": "LORA"}
    draft.extra["adapter_model.pt"] = b"a pickle, which is not read"
    folder = draft.write(tmp_path / "epoch_0")
    code, found = inspect(folder)
    assert (code, found["trainer"]) == (0, "torchtune")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.pt").rename(folder / "adapter_0.pt")
    code, found = inspect(folder)
    assert code == 1
    assert [each["code"] for each in found["problems"]] == ["file_pickle"]
    assert "epoch_N" in found["problems"][0]["fix"]
