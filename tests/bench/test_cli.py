"""The command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from bench.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_rows_can_be_listed_without_measuring_anything():
    result = run("--list", "--rows", "nf4-*,mixed-bf16")
    assert result.exit_code == 0
    assert result.stdout.split() == ["mixed-bf16", "nf4-1", "nf4-24"]


def test_the_model_alone_is_built_once_and_its_folder_is_printed(tmp_path):
    first, again = (run("--model", "--tiny", "--out", str(tmp_path)) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert first.stdout == again.stdout
    assert (Path(first.stdout.strip()) / "model.safetensors").exists()


def test_an_unknown_row_is_one_clear_line_and_exit_code_2():
    result = run("--rows", "fastest")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no row is called 'fastest'; there are: ")
    assert result.stderr.endswith("(row_unknown)\n")
    assert result.stderr.count("\n") == 1


def test_tiny_figures_do_not_get_into_the_docs():
    result = run("--tiny", "--write-docs")
    assert result.exit_code == 2
    assert "(options_clash)" in result.stderr


def test_an_unwritable_folder_exits_with_1(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("--tiny", "--rows", "mixed-bf16", "--out", str(tmp_path / "file"))
    assert result.exit_code == 1
    assert "(out_unwritable)" in result.stderr


def test_the_help_is_quick_because_nothing_heavy_is_imported_for_it():
    heavy = "{'torch', 'vllm', 'transformers', 'rich.table'}"
    code = f"import sys, bench.cli, bench.rows; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
