"""Whatever is written to the server's output becomes one JSON object a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from server_process import ROOT

from server.telemetry.collector import Lines

OURS = '{"time": "2026-01-01T00:00:00.000+00:00", "level": "info", "event": "call", "model": "x"}'
TRACE = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    boom()

ValueError: first line
second line

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
KeyError: 3"""


def collected(*chunks: str | bytes, pause: bool = True) -> list[dict[str, Any]]:
    written: list[bytes] = []
    lines = Lines(written.append)
    for chunk in chunks:
        lines.feed(chunk.encode() if isinstance(chunk, str) else chunk)
        if pause:
            lines.end_block()
    lines.end()
    assert all(each.endswith(b"\n") and each.count(b"\n") == 1 for each in written)
    return [json.loads(each) for each in written]


def test_our_own_lines_pass_as_they_are():
    written: list[bytes] = []
    lines = Lines(written.append)
    lines.feed(f"{OURS[:20]}".encode())
    lines.feed(f"{OURS[20:]}\n".encode())
    assert written == [f"{OURS}\n".encode()]


def test_a_foreign_line_is_an_object_with_its_text():
    (line,) = collected("nanobind: leaked 3 instances!\n")
    assert {key: line[key] for key in ("level", "event", "logger", "message")} == {
        "level": "warning",
        "event": "log",
        "logger": "stderr",
        "message": "nanobind: leaked 3 instances!",
    }
    assert [each["message"] for each in collected("10%\r20%\r\n\n", "no end")] == [
        "10%",
        "20%",
        "no end",
    ]
    (odd,) = collected(b"\xff\x1b[31mred\x1b[0m\xe2\x80\xa8.\n")
    assert odd["message"] == "\ufffdred\u2028."
    (imposter,) = collected('{"time": "now", broken\n')
    assert imposter["message"] == '{"time": "now", broken'


def test_a_traceback_is_one_object_also_when_it_comes_in_pieces():
    pieces = [TRACE[:30], TRACE[30:100], TRACE[100:] + "\n"]
    (line,) = collected(*pieces, pause=False)
    assert (line["level"], line["message"]) == ("error", TRACE)
    trace, call, after = collected(f"{TRACE}\n{OURS}\nafter\n", pause=False)
    assert (trace["message"], call["event"], after["message"]) == (TRACE, "call", "after")


def test_indented_lines_belong_to_the_one_before():
    lines = collected("a.py:3: UserWarning: odd\n  warn()\nnext\n", pause=False)
    assert [each["message"] for each in lines] == ["a.py:3: UserWarning: odd\n  warn()", "next"]
    (leaks,) = collected("nanobind: leaked 2!\n - leaked x\nnanobind: see\n", pause=False)
    assert leaks["level"] == "warning"


def test_a_writer_without_an_end_is_bounded():
    lines = collected(*["again and again\n"] * 2000)
    assert len(lines) == 600
    (first, second) = collected("x" * 2_000_000)[:1] * 2
    assert len(first["message"]) == len(second["message"]) == 2_000_000
    blocks = collected("Traceback (most recent call last):\n" + "  x\n" * 1200, pause=False)
    assert len(blocks) < 1000


PROGRAM = """
import ctypes, logging, os, sys, threading, warnings
from server.telemetry.logs import start_log
start_log("json")
libc = ctypes.CDLL(None)
logging.getLogger("lorry.x").warning("ours")
os.write(2, b"native\\n")
print("printed", flush=True)
warnings.warn("deprecated")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
os.system("echo of a child >&2")
END
"""
ENDS = {
    "raise ValueError('unhandled')": (1, "ValueError: unhandled"),
    "libc.raise_(11) if 0 else os.kill(os.getpid(), 11)": (-11, "Segmentation fault"),
    "libc.abort()": (-6, "Aborted"),
    "os.write(2, b'last words'); os._exit(7)": (7, "last words"),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_line_of_a_process_is_an_object_however_it_ends(end):
    code, last = ENDS[end]
    program = PROGRAM.replace("END", end)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == code
    assert done.stdout == ""
    objects = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "event", "logger", "message"} <= each.keys() for each in objects)
    messages = [each["message"] + each.get("exception", "") for each in objects]
    for said in ("ours", "native", "printed", "deprecated", "ZeroDivisionError", "of a child"):
        assert sum(said in each for each in messages) == 1, (said, messages)
    assert sum(last in each for each in messages) == 1, messages


def test_the_collector_outlives_a_signal_to_the_whole_group():
    program = PROGRAM.replace("END", "import time; print('up', flush=True); time.sleep(30)")
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(json.loads(line)["message"])
        if seen[-1] == "up":
            os.killpg(process.pid, signal.SIGINT)
            break
    rest = [json.loads(line) for line in process.stderr]
    assert process.wait(30) == -signal.SIGINT
    process.stderr.close()
    assert [each for each in rest if "KeyboardInterrupt" in str(each)] == []
