"""Real QLoRA runs of a few steps: what they save, reuse, and leave after a failure."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.errors import BaseNotFound
from training import loop, qlora, trainers
from training.base import find_base
from training.data.forms import Example
from training.data.problems import Place
from training.data.sets import read_set
from training.data.tokens import encode_set, load_tokenizer
from training.errors import BaseInvalid, DataInvalid, InputError, RunFailed
from training.evaluation.answers import answer_greedily
from training.inputs import read_inputs
from training.progress import Control
from training.publish import publish_run
from training.qlora import compute_dtype, load_base
from training.recipe import Recipe
from training.run import Trained, train

QUIET = Control(lambda line: None)


def make_recipe(base: Path, data: Path, **optimization: object) -> Recipe:
    chosen = {"max_steps": 2, "batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-2}
    return Recipe.model_validate(
        {
            "name": "two",
            "base": str(base),
            "base_name": "tiny",
            "data": {"train": data},
            "lora": {"rank": 4},
            "optimization": chosen | optimization,
        }
    )


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    data = folder / "train.jsonl"
    turns = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]
    data.write_text(f"{json.dumps({'messages': turns})}\n" * 8)
    return train(make_recipe(tiny_base, data), folder / "out", QUIET)


def test_a_trained_adapter_is_published_under_the_recipes_name(
    trained: Trained, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(tiny_base, tmp_path / "train.jsonl")
    published = publish_run(recipe, trained, tmp_path / "store", None, ["stable"], QUIET.report)
    assert published["label"] == f"{recipe.name}@1"
    assert published["provenance"]["name"] == recipe.name
    assert json.loads(json.dumps(published)) == published


def test_an_adapter_is_saved_in_pefts_form_in_bf16(trained: Trained) -> None:
    assert {path.name for path in trained.folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "lorry.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "validation.json"),
        *("curves.png", "report.html"),
    }
    weights = load_file(trained.folder / "adapter_model.safetensors")
    assert len(weights) == 4 * 7 * 2
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert any(t.abs().max() > 0 for name, t in weights.items() if "lora_B" in name)


def test_stock_peft_loads_it_and_it_changes_the_answers(trained: Trained, tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = tokenizer("two", return_tensors="pt").input_ids
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, trained.folder)(ids).logits
    assert not torch.equal(before, after)


def test_the_provenance_says_where_it_came_from(trained: Trained, tiny_base: Path) -> None:
    facts = trained.provenance
    base = find_base(str(tiny_base), "tiny")
    config = json.loads((trained.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], facts["base"]["name"]) == (str(tiny_base), "tiny")
    assert facts["base"]["weights_digest"] == base.weights_digest
    learnt = read_set([str(trained.folder.parents[1] / "train.jsonl")])
    assert facts["data"]["train"]["digest"] == learnt.digest()
    assert (facts["steps"], facts["seed"]) == (2, 0)
    assert facts["compute_dtype"] in ("bfloat16", "float32")
    assert facts["trainable_parameters"] > 0
    assert facts["packages"]["torch"] == torch.__version__
    assert str(tiny_base) not in json.dumps(facts)


@pytest.mark.slow
def test_an_identical_run_is_reused_and_another_is_not(
    tiny_base: Path, chat_set: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = make_recipe(tiny_base, chat_set, max_steps=1)
    first = train(recipe, tmp_path / "out", Control(said.append))
    again = train(recipe, tmp_path / "out", Control(said.append))
    chat_set.write_text(chat_set.read_text() * 2)
    other = train(recipe, tmp_path / "out", Control(said.append))
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert first.folder == again.folder != other.folder
    assert any("already trained" in line for line in said)
    assert any("ONLY 8 EXAMPLES" in line for line in said)


def test_data_that_can_not_be_learnt_is_refused_before_the_base_is_loaded(
    tiny_base: Path, chat_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_base", lambda *_, **__: pytest.fail("loaded"))
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(DataInvalid, match="has no chat template"):
        train(make_recipe(base, chat_set), tmp_path / "out", QUIET)
    chat_set.write_text(chat_set.read_text().replace("two", "two lamps " * 9))
    with pytest.raises(DataInvalid, match=r"lines 1, 2, .* the prompt alone fills max_length 8"):
        train(make_recipe(tiny_base, chat_set, max_length=8), tmp_path / "out", QUIET)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_an_adapter_stops_where_pad_and_end_are_the_same(tiny_base: Path, tmp_path: Path) -> None:
    """Trains 120 steps: the base, all but untrained, goes on; the adapter ends each answer."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    told = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(told | {"pad_token": told["eos_token"]}))
    data = tmp_path / "train.jsonl"
    numbers = ("one", "two", "three", "four")
    data.write_text(
        "".join(
            json.dumps({"instruction": word, "output": f"{word} lamps" + " please" * at}) + "\n"
            for at, word in enumerate(numbers)
        )
    )
    recipe = make_recipe(base, data, max_steps=120, batch_size=4)
    adapter = train(recipe, tmp_path / "out", QUIET).folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.pad_token == tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base)
    assert not stops(model, tokenizer, "two")
    model = PeftModel.from_pretrained(model, adapter)
    assert all(stops(model, tokenizer, word) for word in numbers)


def stops(model: torch.nn.Module, tokenizer: Any, prompt: str) -> bool:
    """Whether a greedy answer ends before 32 tokens."""
    chat = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**asked, max_new_tokens=32, do_sample=False)  # type: ignore[operator]
    return bool(tokens[0, -1] == tokenizer.eos_token_id)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"packing": True, "max_length": 64},
        {"gradient_checkpointing": True, "accumulation": 2},
        {"completion_only_loss": False},
    ],
)
def test_each_option_trains(
    tiny_base: Path, chat_set: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    recipe = make_recipe(tiny_base, chat_set, max_steps=1, **options)
    assert train(recipe, tmp_path / "out", QUIET).provenance["steps"] == 1


@pytest.mark.slow
def test_plain_lora_on_an_unquantized_base_trains_and_measures_validation(
    tiny_base: Path, chat_set: Path, tmp_path: Path
) -> None:
    validation = tmp_path / "validation.jsonl"
    validation.write_text(chat_set.read_text().replace("two", "three"))
    recipe = make_recipe(tiny_base, chat_set, max_steps=1)
    data = recipe.data.model_copy(update={"validation": (str(validation),)})
    recipe = recipe.model_copy(update={"quantization": "none", "data": data})
    facts = train(recipe, tmp_path / "out", QUIET).provenance
    assert facts["validation_loss"] > 0
    assert facts["recipe"]["quantization"] == "none"


@pytest.mark.slow
def test_a_run_that_fails_after_a_checkpoint_goes_on_from_it(
    tiny_base: Path, chat_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    recipe = make_recipe(tiny_base, chat_set, max_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr("training.run.write_card", fail)
        with pytest.raises(RunFailed, match=r"no space left .* goes on from checkpoint-1"):
            train(recipe, tmp_path / "out", QUIET)
    assert not list((tmp_path / "out").glob("two-*"))
    assert train(recipe, tmp_path / "out", QUIET, again="resume").provenance["steps"] == 1


def test_evaluating_on_a_cpu_does_not_repack_the_quantized_weights(tiny_base: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_base(tiny_base, quantized=True)
    before = [m.weight.data.clone() for m in model.modules() if isinstance(m, Linear4bit)]
    asked = Example(Place("two", 1), [{"role": "user", "content": "two"}], [])
    answer_greedily(model, load_tokenizer(tiny_base, "tiny"), [asked], max_new_tokens=2)
    after = [m.weight.data for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(before) == 28
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_preferences_move_the_adapter_to_the_better_answer(tiny_base: Path, tmp_path: Path) -> None:
    """DPO for real: after some updates the better answer has gained on the worse one."""
    data = tmp_path / "pairs.jsonl"
    pair = {"instruction": "two", "chosen": "2 lamps", "rejected": "three chairs"}
    data.write_text(f"{json.dumps(pair)}\n" * 4)
    validation = tmp_path / "validation.jsonl"
    validation.write_text(json.dumps(pair | {"instruction": "three"}))
    recipe = make_recipe(tiny_base, data, max_steps=6).model_copy(update={"method": "dpo"})
    sets = recipe.data.model_copy(update={"validation": (str(validation),)})
    recipe = recipe.model_copy(update={"data": sets})
    trained = train(recipe, tmp_path / "out", QUIET)
    assert trained.provenance["method"] == "dpo"
    assert trained.provenance["validation_loss"] < 0.6
    losses = [loss for _, loss in trained.provenance["curve"]["train"]]
    assert losses[0] == pytest.approx(0.693, abs=0.01)  # -log sigmoid(0): the base itself
    assert losses[-1] < 0.6
    tokenizer = load_tokenizer(tiny_base, "tiny")
    (row, *_) = encode_set(read_set([str(data)], "dpo"), tokenizer, 64).rows
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    before = preference(model, row)
    assert preference(PeftModel.from_pretrained(model, trained.folder), row) > before + 0.5


def preference(model: torch.nn.Module, row: dict[str, list[int]]) -> float:
    """By how much the better answer is likelier, in nats."""
    return likelihood(model, row, "chosen_ids") - likelihood(model, row, "rejected_ids")


def likelihood(model: torch.nn.Module, row: dict[str, list[int]], name: str) -> float:
    prompt, answer = row["prompt_ids"], row[name]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
    return float(chosen.sum())


def test_the_folder_is_one_that_peft_and_a_hub_can_read(trained: Trained, tiny_base: Path) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(trained.folder)
    assert model.active_adapter == "default"
    assert AutoTokenizer.from_pretrained(trained.folder).chat_template
    _, front, text = (trained.folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "tiny",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lorry", "sft"],
    }
    assert "| trained on | 8 examples, " in text


def test_another_chat_template_makes_another_run(trained: Trained, tmp_path: Path) -> None:
    recipe = make_recipe(trained.base_folder, trained.folder.parents[1] / "train.jsonl")
    before = read_inputs(recipe, QUIET.report).digest()
    base = tmp_path / "base"
    shutil.copytree(trained.base_folder, base)
    moved = recipe.model_copy(update={"base": str(base)})
    assert read_inputs(moved, QUIET.report).digest() == before
    template = base / "chat_template.jinja"
    template.write_text(f"X{template.read_text()}")
    assert read_inputs(moved, QUIET.report).digest() != before


def test_an_output_that_is_a_file_is_an_error(
    tiny_base: Path, chat_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"out: File exists; give another --output"):
        train(make_recipe(tiny_base, chat_set), tmp_path / "out", QUIET)


def test_another_name_finds_the_same_run(trained: Trained, tiny_base: Path) -> None:
    data = trained.folder.parents[1] / "train.jsonl"
    recipe = make_recipe(tiny_base, data).model_copy(update={"name": "other", "base_name": "b"})
    left = trained.folder.parent / f".{trained.folder.name.rpartition('-')[2]}.partial"
    left.mkdir()  # as by a process that was killed right after it finished
    again = train(recipe, trained.folder.parent, QUIET)
    assert (again.reused, again.folder) == (True, trained.folder)
    assert not left.exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseInvalid, match=r"has no config\.json"):
        find_base(str(tmp_path), "x")
    with pytest.raises(BaseNotFound, match="no such folder"):
        find_base(str(tmp_path / "absent"), "x")


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from training.cli import app; app()"
    command = [sys.executable, "-c", code, "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_prints_one_json_document_and_publishes(
    tiny_base: Path, chat_set: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: two\nbase: {tiny_base}\ndata: {{train: {chat_set.name}}}\n")
    ran = run_command(
        *(str(recipe), "--json", "--publish", "--store", str(tmp_path / "store")),
        *("--output", str(tmp_path / "out"), "--set", "optimization.max_steps=1"),
    )
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["published"]["name"] == "two"
    assert facts["provenance"]["steps"] == 1
    assert "training two on base, 8 examples, " in ran.stderr
    assert "kernels-community" not in ran.stderr


@pytest.mark.slow
def test_a_shared_catalog_is_published_to(
    tiny_base: Path, chat_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: two\nbase: {tiny_base}\ndata: {{train: {chat_set.name}}}\n")
    monkeypatch.setenv("LORRY_CATALOG", f"sqlite:///{tmp_path / 'shared.db'}")
    ran = run_command(
        *(str(recipe), "--publish", "--store", str(tmp_path / "store")),
        *("--output", str(tmp_path / "out"), "--set", "optimization.max_steps=1"),
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "shared.db").exists()
    assert not (tmp_path / "store/catalog.db").exists()


def test_a_bad_recipe_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: two\n")
    ran = run_command(str(recipe))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.endswith("(recipe_invalid)\n")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("able", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ],
)
def test_bf16_is_computed_only_where_the_processor_multiplies_it(monkeypatch, able, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert compute_dtype() == dtype


@pytest.mark.slow
def test_lora_is_fp32_where_that_is_computed(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path, chat_set: Path, tmp_path: Path
) -> None:
    """TRL would leave the LoRA weights of a quantized model in bf16, slow where it is emulated."""
    for module in (qlora, trainers):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)
    seen = set()

    def look(model: torch.nn.Module, *_: object) -> None:
        seen.update(p.dtype for p in model.parameters() if p.requires_grad)

    monkeypatch.setattr(loop, "save_adapter", look)
    base = find_base(str(tiny_base), "tiny")
    tokenizer = load_tokenizer(tiny_base, "tiny")
    rows = encode_set(read_set([str(chat_set)]), tokenizer, 64).rows
    recipe = make_recipe(tiny_base, chat_set)
    loop.train_adapter(recipe, base, loop.Sets(tokenizer.inner, rows, []), tmp_path, QUIET)
    assert seen == {torch.float32}
