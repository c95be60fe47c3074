"""Merging: the sums are PEFT's, the checkpoint is plain, and nothing is half-written."""

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from shop import ADAPTERS, BASE, BASE_NAME, KEPT
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from adapters.catalog import Catalog
from adapters.errors import AdapterNotFound, CheckpointInvalid
from adapters.publish import Rules, publish
from adapters.store import Store
from training.data.sets import read_set
from training.data.tokens import load_tokenizer
from training.errors import BaseInvalid, BaseMismatch, DiskFull, MergeFailed, OutputExists
from training.evaluation.answers import answer_greedily, expected_text
from training.merge import merge as merging
from training.merge.cli import app
from training.merge.merge import Options, merge, write_form
from training.merge.source import Source, find_adapter, pair, trained_on, unproven
from training.qlora import load_base
from training.shop.dataset import write_datasets

ORDERS = KEPT / "orders-json"
FULL = Options("full", torch.float32)


def merged(
    adapter: Path, out: Path, options: Options = FULL, base: Path = BASE, force: bool = False
) -> dict[str, Any]:
    """Merge a folder quietly."""
    return merge(pair(Source(adapter), str(base), force=force), out, options, lambda line: None)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged_by_peft(adapter: Path) -> dict[str, torch.Tensor]:
    """The weights that PEFT's merge_and_unload has, computed in fp32."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merged into the full-precision base, in bf16."""
    out = tmp_path_factory.mktemp("merge") / "full"
    merged(ORDERS, out, Options("full", torch.bfloat16))
    return out


@pytest.fixture(scope="module")
def nf4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merged into the base as NF4 has it, in bf16."""
    out = tmp_path_factory.mktemp("merge") / "nf4"
    merged(ORDERS, out, Options("nf4", torch.bfloat16))
    return out


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one published adapter."""
    folder = tmp_path / "store"
    with Catalog.open(folder) as catalog:
        rules = Rules(BASE, BASE_NAME)
        publish(ORDERS, "orders", store=Store(folder), catalog=catalog, rules=rules)
    return folder


def test_the_sums_are_those_of_peft(tmp_path: Path, full: Path) -> None:
    expected = merged_by_peft(ORDERS)
    merged(ORDERS, tmp_path / "fp32")
    exact, rounded = weights_of(tmp_path / "fp32"), weights_of(full)
    assert set(exact) == set(rounded) == set(load_file(BASE / "model.safetensors"))
    for name, weight in exact.items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6, msg=name)
        assert torch.equal(rounded[name], weight.bfloat16()), name


def test_scales_of_each_module_are_those_of_peft(tmp_path: Path) -> None:
    """Rank-stabilised, with ranks and alphas of their own."""
    config = LoraConfig(
        r=8,
        lora_alpha=12,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "v_proj"],
        rank_pattern={"q_proj": 4},
        alpha_pattern={"layers.1.mlp.down_proj": 30},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
    model.save_pretrained(tmp_path / "adapter")
    merged(tmp_path / "adapter", tmp_path / "out")
    expected, found = merged_by_peft(tmp_path / "adapter"), weights_of(tmp_path / "out")
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5, msg=name)
    changed = load_file(BASE / "model.safetensors")
    differ = {name for name in found if not torch.equal(found[name], changed[name].float())}
    assert len(differ) == 4 * 3


def test_into_nf4_adds_to_the_weights_that_were_trained_on(tmp_path: Path) -> None:
    merged(ORDERS, tmp_path / "out", Options("nf4", torch.float32))
    found = weights_of(tmp_path / "out")
    quantized: Any = PeftModel.from_pretrained(load_base(BASE, quantized=True), ORDERS)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in quantized.named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(layers) == 4 * 7
    for name, layer in layers.items():
        linear = layer.base_layer
        assert isinstance(linear, Linear4bit)
        base = dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
        a, b = (each.default.weight.float() for each in (layer.lora_A, layer.lora_B))
        expected = base + layer.scaling["default"] * (b @ a)
        actual = found[f"{name}.weight"]
        # Where the processor computes in fp32, the base that was quantized is not rounded to bf16.
        torch.testing.assert_close(actual, expected, rtol=0.01, atol=1e-4, msg=name)
    kept = load_file(BASE / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found["model.embed_tokens.weight"], kept.float())


def test_outputs_are_those_of_base_and_adapter(full: Path, nf4: Path) -> None:
    """Within bf16's rounding of the merged weights; each merge is nearer to its own base."""
    ids = AutoTokenizer.from_pretrained(BASE)("two blue lamps, one red chair", return_tensors="pt")
    plain: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    models = {
        "full": PeftModel.from_pretrained(plain, ORDERS),
        "nf4": PeftModel.from_pretrained(load_base(BASE, quantized=True), ORDERS),
    }
    with torch.inference_mode():
        expected = {name: model.eval()(**ids).logits.float() for name, model in models.items()}
        for name, folder in (("full", full), ("nf4", nf4)):
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            logits = model(**ids).logits
            distance = {of: (logits - each).abs().mean() for of, each in expected.items()}
            assert distance[name] < 0.02 * expected[name].abs().mean()
            assert distance[name] == min(distance.values())


def test_transformers_loads_it_whole_and_it_answers_as_trained(nf4: Path, tmp_path: Path) -> None:
    model, said = AutoModelForCausalLM.from_pretrained(nf4, output_loading_info=True)
    assert not any(said.values())
    assert model.dtype == torch.bfloat16
    tied = model.get_output_embeddings().weight
    assert tied.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    write_datasets(tmp_path)
    asked = read_set([str(tmp_path / "orders-json.heldout.jsonl")]).examples[:8]
    tokenizer = load_tokenizer(nf4, "merged")
    answers = answer_greedily(model, tokenizer, asked, max_new_tokens=96)
    expected = [expected_text(example, tokenizer) for example in asked]
    assert sum(answer.text == text for answer, text in zip(answers, expected, strict=True)) >= 7


def test_what_makes_the_base_usable_comes_along(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    (base / "LICENSE").write_text("free")
    (base / "pytorch_model.bin").write_text("other weights")
    merged(ORDERS, tmp_path / "out", Options("full", torch.float16), base)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {path.name for path in BASE.iterdir()} | {"LICENSE", "lorry.json"}
    assert names == expected - {"README.md"}
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "out").iterdir())
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (BASE / name).read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == json.loads((BASE / "config.json").read_text()) | {"dtype": "float16"}
    assert {each.dtype for each in weights_of(tmp_path / "out").values()} == {torch.float16}


def test_a_base_in_several_files_stays_so(tmp_path: Path, full: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    (base / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(BASE)
    model.save_pretrained(base, max_shard_size="1MB")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2
    merged(ORDERS, tmp_path / "out", Options("full", torch.bfloat16), base, force=True)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("*.safetensors")) == shards
    together = {name: each for shard in shards for name, each in load_file(out / shard).items()}
    whole = weights_of(full)
    assert all(torch.equal(together[name], whole[name]) for name in whole)
    _, said = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(said.values())


def test_a_published_version_is_merged_with_its_provenance(store: Path, tmp_path: Path) -> None:
    source = find_adapter("orders@1", store, None)
    facts = merge(pair(source, str(BASE), force=False), tmp_path / "out", FULL, lambda line: None)
    assert json.loads((tmp_path / "out/lorry.json").read_text()) == facts
    assert facts["merged"]["adapter"] == "orders@1"
    assert facts["merged"]["adapter_digest"] == f"sha256:{source.folder.name}"
    assert facts["adapter"] == json.loads((ORDERS / "lorry.json").read_text())
    assert facts["base"]["weights_digest"] == facts["adapter"]["base"]["weights_digest"]
    assert str(BASE) not in json.dumps(facts)
    assert find_adapter("orders", store, None) == find_adapter("orders@stable", store, None)
    with pytest.raises(AdapterNotFound):
        find_adapter("order", store, None)


def test_an_adapter_of_an_unquantized_base_is_merged_into_that(tmp_path: Path) -> None:
    assert trained_on(pair(Source(ORDERS), str(BASE), force=False)) == "nf4"
    adapter = tmp_path / "adapter"
    shutil.copytree(ORDERS, adapter)
    facts = json.loads((ORDERS / "lorry.json").read_text())
    facts["recipe"]["quantization"] = "none"
    (adapter / "lorry.json").write_text(json.dumps(facts))
    assert trained_on(pair(Source(adapter), str(BASE), force=False)) == "full"


def test_another_base_is_refused_unless_forced(tmp_path: Path, store: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    model: Any = AutoModelForCausalLM.from_pretrained(BASE)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(base)
    with pytest.raises(BaseMismatch, match="trained on"):
        pair(Source(ORDERS), str(base), force=False)
    assert pair(Source(ORDERS), str(base), force=True).base.folder == base
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    source = find_adapter("orders", store, None)
    bare = tmp_path / "bare"
    shutil.copytree(source.folder, bare)
    (bare / "lorry.json").unlink()
    foreign = Source(bare, source.label, source.base_name, source.base_digest)
    with pytest.raises(BaseMismatch, match="another architecture"):
        pair(foreign, str(base), force=False)
    assert "nothing shows" in str(unproven(pair(Source(bare), str(base), force=False)))


def test_a_base_of_other_shapes_is_refused_even_if_forced(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    model: Any = AutoModelForCausalLM.from_pretrained(BASE)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    model.save_pretrained(base)
    with pytest.raises(CheckpointInvalid) as caught:
        pair(Source(ORDERS), str(base), force=True)
    assert caught.value.problems[0].code == "layer_unknown"


def test_a_base_that_is_missing_or_quantized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseInvalid, match="give --base"):
        pair(Source(ORDERS), None, force=False)
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    config = json.loads((BASE / "config.json").read_text())
    quantized = config | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (base / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(BaseInvalid, match="quantized already"):
        merged(ORDERS, tmp_path / "out", base=base, force=True)


def test_an_adapter_that_is_more_than_a_sum_is_refused(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(ORDERS, adapter)
    config = json.loads((ORDERS / "adapter_config.json").read_text())
    dora = config | {"use_dora": True, "modules_to_save": ["lm_head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(dora))
    with pytest.raises(CheckpointInvalid) as caught:
        merged(adapter, tmp_path / "out")
    codes = {problem.code for problem in caught.value.problems}
    assert codes == {"dora_unsupported", "modules_to_save_unsupported"}
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    merged(ORDERS, out)  # an empty one is taken
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputExists):
        merged(ORDERS, out, Options("nf4", torch.bfloat16))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_disk_without_room_is_told_before_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(1, 1, 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DiskFull, match=r"needs 0\.0 GB"):
            merged(ORDERS, tmp_path / "deep/out")
    assert not list(tmp_path.iterdir())

    def fail(code: int) -> None:
        def copy(*_: object) -> None:
            raise OSError(code, "failed")

        monkeypatch.setattr(merging.shutil, "copyfile", copy)

    for code, expected in ((errno.ENOSPC, DiskFull), (errno.EIO, MergeFailed)):
        fail(code)
        with pytest.raises(expected, match="nothing was kept"):
            merged(ORDERS, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_values_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    model: Any = AutoModelForCausalLM.from_pretrained(BASE)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(base)
    with pytest.raises(MergeFailed, match=r"layers\.0\.mlp\.up_proj\.weight"):
        merged(ORDERS, tmp_path / "out", Options("full", torch.float16), base, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_command_merges_and_reports_errors_with_their_codes(
    store: Path, tmp_path: Path
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, [*arguments, "--store", str(store)])
        return done.exit_code, done.stdout, done.stderr

    out = str(tmp_path / "out")
    code, said, progress = run("orders", out, "--base", str(BASE), "--json")
    assert code == 0, progress
    facts = json.loads(said)
    assert (facts["folder"], facts["provenance"]["merged"]["into"]) == (out, "nf4")
    assert "merging model.safetensors (1 of 1)" in progress
    refused = {
        ("orders", out, "--base", str(BASE)): "output_exists",
        ("orders@9", f"{out}2", "--base", str(BASE)): "adapter_not_found",
        ("or ders", f"{out}2", "--base", str(BASE)): "bad_reference",
        ("orders", f"{out}2"): "base_invalid",
        ("orders", f"{out}2", "--base", str(tmp_path / "no")): "base_not_found",
    }
    for arguments, expected in refused.items():
        code, said, error = run(*arguments)
        assert (code, said) == (2, ""), arguments
        assert error.startswith("error: ")
        assert error.endswith(f"({expected})\n")
    assert not Path(f"{out}2").exists()


def test_every_kept_adapter_merges(tmp_path: Path) -> None:
    for name in ADAPTERS:
        merged(KEPT / name, tmp_path / name, Options("nf4", torch.bfloat16))


def test_the_adapters_own_chat_form_goes_into_the_merged_model(tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    for folder in (adapter, out):
        folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BASE / name, out)
        shutil.copy(BASE / name, adapter)
    write_form(adapter, BASE, out)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (BASE / name).read_bytes()
    templates = [
        {"name": "default", "template": "own {{ eos_token }}"},
        {"name": "tool_use", "template": "tools"},
    ]
    (adapter / "chat_template.jinja").unlink()
    config = {"eos_token": "<|user|>", "chat_template": templates}
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    write_form(adapter, BASE, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "own <|user|>"
    assert tokenizer.apply_chat_template(chat, tools=[{}], tokenize=False) == "tools"
    assert tokenizer.eos_token == "<|user|>"
