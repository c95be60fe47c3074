"""A signal at any second of `lorry serve` ends it with 0, and without a traceback."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import ROOT

BASE = ROOT / "examples" / "shop" / "base"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def serve(*wrapper: str, log_format: str = "json") -> subprocess.Popen[str]:
        command = [*wrapper, sys.executable, "-m", "lorry", "serve", str(BASE), "--port", "0"]
        command += ["--store", str(tmp_path / "store"), "--log-format", log_format]
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield serve
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        assert process.stderr is not None
        process.stderr.close()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and the log, which ends when no process that could write is left."""
    assert process.stderr is not None
    code = process.wait(60)
    return code, process.stderr.read()


def until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


def handles(process: subprocess.Popen[str], number: int) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def stop_after(process: subprocess.Popen[str], seconds: float, number: int) -> None:
    """Signals `seconds` after our first instruction: Python itself needs a moment to start."""
    deadline = time.monotonic() + 30
    while not handles(process, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process.pid, number)


@pytest.mark.parametrize(
    ("seconds", "number"),
    [
        (0.0, signal.SIGTERM),
        (0.5, signal.SIGINT),
        (1.0, signal.SIGHUP),
        (1.5, signal.SIGTERM),
    ],
)
def test_a_signal_in_the_first_seconds_ends_it_with_0(serve, seconds, number):
    process = serve()
    stop_after(process, seconds, number)
    code, log = ended(process)
    assert code == 0, log
    assert "Traceback" not in log
    assert all(json.loads(line) for line in log.splitlines())


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_start_ends_it_with_0(serve):
    faults = []
    for step in range(20):
        seconds = step * 0.2
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[step % 3]
        process = serve(log_format=("json", "text")[step % 2])
        stop_after(process, seconds, number)
        code, log = ended(process)
        if code != 0 or "Traceback" in log:
            faults.append((seconds, number, code, log))
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_group_while_the_engine_starts_leaves_no_process(serve, number):
    process = serve()
    log = until(process, "starting the engine")
    time.sleep(3)
    os.killpg(process.pid, number)
    code, rest = ended(process)
    assert code == 0, rest
    assert "Traceback" not in log + rest
    assert all(json.loads(line) for line in (log + rest).splitlines())


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_changes_nothing(serve):
    process = serve("nohup")
    until(process, "importing vLLM")
    os.kill(process.pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process)[0] == 0


@pytest.mark.slow
def test_a_closed_terminal_ends_it_with_0(tmp_path):
    command = [sys.executable, "-m", "lorry", "serve", str(BASE), "--port", "0"]
    command += ["--store", str(tmp_path / "store")]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(command[0], command)
    seen = b""
    while b"lorry: importing vLLM" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


STOPPING = """
import os, signal, sys, time
from server import signals
asked = []
signals.on_stop(lambda: asked.append(1))
for name in sys.argv[1:]:
    os.kill(os.getpid(), getattr(signal, name))
print(len(asked))
"""


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (["SIGTERM"], 0),
        (["SIGTERM", "SIGTERM"], 0),  # who sends it twice, or to a process and its group
        (["SIGHUP", "SIGHUP", "SIGTERM"], 0),
        (["SIGINT", "SIGTERM", "SIGHUP"], 0),
        (["SIGTERM", "SIGINT"], 130),
        (["SIGINT", "SIGINT"], 130),
    ],
)
def test_only_ctrl_c_hastens_a_server_that_stops(sent, code):
    command = [sys.executable, "-c", STOPPING, *sent]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (code, "1\n" if code == 0 else "")


def test_the_last_second_ignores_them():
    program = "import os, signal\nfrom server import signals\nsignals.install()\nsignals.ignore()\n"
    program += "[os.kill(os.getpid(), n) for n in (1, 2, 15)]\nraise SystemExit(9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 9
