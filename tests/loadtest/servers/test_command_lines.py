"""The command lines: their programs accept them, and all have the same engine flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.cli import app as adapters_cli
from loadtest.plan.scenario import Server
from loadtest.servers import command_lines as commands
from loadtest.servers.command_lines import Setup

BASE = Path(__file__).parents[3] / "examples/shop/base"


@pytest.fixture
def setup(tmp_path):
    options = Server(
        quantization="bitsandbytes",
        max_loras=3,
        max_cpu_loras=5,
        max_lora_rank=16,
        kv_cache_gib=0.5,
        engine_flags=("--max-num-seqs", "24"),
    )
    adapters = {"a": tmp_path / "a.v1", "b": tmp_path / "b.v1"}
    return Setup(base=BASE, name="shop", work=tmp_path, options=options, adapters=adapters)


def after(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_lorry_and_stock_have_the_same_sizes_and_quantization(setup):
    ours, theirs = commands.lorry(setup, 1, Path("s")), commands.stock(setup, 2)
    for flag, value in {
        "--max-loras": "3",
        "--max-cpu-loras": "5",
        "--max-lora-rank": "16",
        "--quantization": "bitsandbytes",
        "--served-model-name": "shop",
        "--max-num-seqs": "24",
    }.items():
        assert after(ours, flag) == after(theirs, flag) == value
    assert after(ours, "--port") == "1"
    assert ours.index("--") < ours.index("--max-num-seqs")


def test_stock_has_each_adapter_by_name_and_the_same_cache(setup):
    command = commands.stock(setup, 2)
    start = command.index("--lora-modules") + 1
    assert command[start : start + 2] == [f"{n}={setup.work / n}.v1" for n in ("a", "b")]
    assert after(command, "--kv-cache-memory-bytes") == str(1 << 29)


def test_the_base_alone_and_merged_models_have_no_lora(setup):
    for command in (commands.stock_base(setup, 1), commands.merged(setup, "a", Path("m"), 1)):
        assert not [word for word in command if "lora" in word]
    assert after(commands.merged(setup, "a", Path("m"), 1), "--served-model-name") == "a"


def test_unquantized_means_no_flag_for_vllm(setup, tmp_path):
    plain = Setup(base=BASE, name="shop", work=tmp_path, options=Server(quantization="none"))
    assert "--quantization" not in commands.stock(plain, 1)
    assert "--lora-modules" not in commands.stock(plain, 1)
    assert after(commands.lorry(plain, 1, Path("s")), "--quantization") == "none"


def test_the_plain_side_differs_by_its_admission_alone(setup):
    ours, plain = (side(setup, 1, Path("s")) for side in (commands.lorry, commands.plain))
    at = plain.index("--admission")
    assert plain[at : at + 2] == ["--admission", "plain"]
    assert plain[:at] + plain[at + 2 :] == ours


def test_settings_of_our_server_are_not_given_to_others(tmp_path):
    options = Server(admission="fair", max_engine_restarts=12)
    setup = Setup(base=BASE, name="shop", work=tmp_path, options=options)
    ours = commands.lorry(setup, 1, Path("s"))
    assert (after(ours, "--admission"), after(ours, "--max-engine-restarts")) == ("fair", "12")
    assert after(commands.plain(setup, 1, Path("s")), "--admission") == "plain"
    assert not {"--admission", "--max-engine-restarts"} & set(commands.stock(setup, 1))


def test_publishing_takes_every_folder(setup, tmp_path):
    drop = tmp_path / "drop"
    drop.mkdir()
    command = commands.publish(setup, drop, tmp_path / "store")
    assert command[1:4] == ["-m", "lorry", "adapters"]
    assert CliRunner().invoke(adapters_cli, command[4:]).exit_code == 0
