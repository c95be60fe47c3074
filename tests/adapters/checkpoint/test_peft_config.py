import json
import time
from pathlib import Path

from adapters.checkpoint.peft_config import is_cheap_pattern, read_peft_config

MODULES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (1, 11) for name in "qv"]


def write(folder: Path, config: object) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def read(folder: Path, kit, **changes):
    config, problems = read_peft_config(write(folder, kit.build().config | changes), 512)
    assert problems == []
    assert config is not None
    return config


def test_scale_is_alpha_over_rank(kit, tmp_path) -> None:
    assert read(tmp_path, kit, r=4, lora_alpha=8).scale_of(MODULES[0]) == 2.0


def test_rank_stabilised_scale_is_alpha_over_the_root_of_rank(kit, tmp_path) -> None:
    config = read(tmp_path, kit, r=16, lora_alpha=8, use_rslora=True)
    assert config.scale_of(MODULES[0]) == 2.0


PATTERNS = [
    ("q_proj", [True, False, True, False]),
    ("self_attn.v_proj", [False, True, False, True]),
    ("model.layers.1.self_attn.q_proj", [True, False, False, False]),
    ("^model.layers.1.self_attn.q_proj", [True, False, False, False]),
    (r"layers\.1\..*", [True, True, False, False]),
    (r"layers.1[0-9]*.self_attn.(q|k)_proj", [True, False, True, False]),
    ("proj", [False, False, False, False]),
]


def test_patterns_match_the_end_of_a_module_name_as_in_peft(kit, tmp_path) -> None:
    found = []
    for key, _ in PATTERNS:
        config = read(tmp_path, kit, r=4, rank_pattern={key: 32}, alpha_pattern={key: 64.0})
        found.append((key, [config.rank_of(module) == 32 for module in MODULES]))
        assert [config.scale_of(module) == 2.0 for module in MODULES] == [True] * 4
        assert config.largest_rank == 32
    assert found == PATTERNS


def test_the_first_matching_pattern_wins(kit, tmp_path) -> None:
    config = read(tmp_path, kit, rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 3})
    assert config.rank_of(MODULES[0]) == 2


def test_the_default_rank_counts_even_if_no_module_has_it(kit, tmp_path) -> None:
    assert read(tmp_path, kit, r=64, rank_pattern={"q_proj": 2}).largest_rank == 64


CHEAP = [
    "q_proj",
    r"model\.layers\.0\.self_attn\.q_proj",
    r".*\.self_attn\..*",
    "layers.(0|1|2|10|11).self_attn.v_proj",
    "layers.(?:0|1).mlp.up_proj",
    r"layers\.\d+\.mlp",
    "[0-9]{1,2}.mlp.up_proj",
]


def test_the_patterns_that_trainers_write_are_cheap() -> None:
    assert [key for key in CHEAP if not is_cheap_pattern(key)] == []


SLOW = [
    "(a+)+$",
    "(a*)*b",
    "(.*.*.*)*x",
    ".*.*.*x",
    "(a|a)(a|a)(a|a)b",
    "(?=.*x)y",
    r"(a)\1",
    "a?a?a?aaa",
    "(a",
    "[b-a]",
    "*",
    "x" * 300,
]


def test_a_pattern_that_could_stall_the_engine_is_refused(kit, tmp_path) -> None:
    found = []
    for key in SLOW:
        config = kit.build().config | {"rank_pattern": {key: 4}}
        _, problems = read_peft_config(write(tmp_path, config), 512)
        found.append((key, [problem.code for problem in problems]))
    assert found == [(key, ["pattern_unsafe"]) for key in SLOW]
    assert [key for key in SLOW if is_cheap_pattern(key)] == []


def test_the_worst_cheap_pattern_is_still_fast(kit, tmp_path) -> None:
    worst = ".*.*(" + "|".join(["a"] * 100) + ")b"
    config = read(tmp_path, kit, rank_pattern={worst: 4})
    started = time.perf_counter()
    config.rank_of("model.layers.10.self_attn." + "a" * 40)
    assert time.perf_counter() - started < 1


def test_thousands_of_patterns_are_refused(kit, tmp_path) -> None:
    config = kit.build().config | {"alpha_pattern": {f"m{index}": 1 for index in range(5000)}}
    _, problems = read_peft_config(write(tmp_path, config), 512)
    assert [problem.code for problem in problems] == ["alpha_pattern_invalid"]


def test_only_unnarrowed_plain_targets_say_which_modules_must_be_there(kit, tmp_path) -> None:
    assert read(tmp_path, kit).targets == ("q_proj", "v_proj", "down_proj")
    assert read(tmp_path, kit, layers_to_transform=[0]).targets == ()
    assert read(tmp_path, kit, exclude_modules=["v_proj"]).targets == ()
    assert read(tmp_path, kit, target_modules=r".*\.(q|v)_proj").targets == ()
