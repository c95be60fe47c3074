"""The `lorry` command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lorry import COMMANDS


def lorry(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorry", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys, lorry\n"
        "try: lorry.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m in ('server', 'adapters', 'training', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_own_help(command):
    done = lorry(command, "--help")
    assert done.returncode == 0
    assert f"Usage: lorry {command}" in done.stdout


@pytest.mark.parametrize("arguments", [["nope"], ["serve", "--nope"], ["train"], ["adapters", "x"]])
def test_an_invalid_command_line_exits_with_2_and_no_traceback(arguments):
    done = lorry(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_listing_adapters_does_not_import_torch(tmp_path):
    code = (
        "import sys, lorry\n"
        "from adapters.catalog import Catalog; from pathlib import Path\n"
        f"Catalog.open(Path({str(tmp_path / 's')!r})).close()\n"
        f"arguments = ['adapters', 'list', '--json', '--store', {str(tmp_path / 's')!r}]\n"
        "try: lorry.main(arguments)\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, imported = done.stdout.strip().rsplit("\n", 1)
    assert json.loads(listed) == []
    assert imported == "False"


def test_the_watchdog_runs_in_a_spawned_process_from_its_first_import(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, threading\n"
        "import lorry\n"
        "def show(): print([thread.name for thread in threading.enumerate()], flush=True)\n"
        "if __name__ == '__main__':\n"
        "    show()\n"
        "    os.environ['LORRY_PARENT_PID'] = str(os.getpid())\n"
        "    child = multiprocessing.get_context('spawn').Process(target=show)\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    server, engine = done.stdout.splitlines()
    assert "lorry-watchdog" not in server
    assert "lorry-watchdog" in engine
