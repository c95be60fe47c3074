"""The traffic of a thousand adapters, on a server that answers by rule, alone in its session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench import growth, many

# Answers as asked; adapter 1 as another, and adapter 2 not at all.
SERVER = '''
import itertools
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

asked = itertools.count(1)
# One more load of each of two adapters, 0.N s in all, each time it is asked.
LOADS = """# TYPE lorry_adapter_load_seconds histogram
lorry_adapter_load_seconds_bucket{adapter="a",le="+Inf"} N
lorry_adapter_load_seconds_count{adapter="a"} N
lorry_adapter_load_seconds_sum{adapter="a"} 0.N
lorry_adapter_load_seconds_count{adapter="b"} N
lorry_adapter_load_seconds_sum{adapter="b"} 0.N
lorry_adapter_loads_total{adapter="a"} 9
"""

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        label = asked["model"].replace("0001", "0000") + "@1"
        body = {"model": label, "choices": [{"text": "x"}], "usage": {"completion_tokens": 1}}
        status = 503 if "0002" in label else 200
        text = json.dumps(body if status == 200 else {"error": {"code": "busy"}}).encode()
        self.send_response(status)
        self.send_header("x-lorry-adapter", label)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        assert self.path == "/metrics"
        text = LOADS.replace("N", str(next(asked))).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

ThreadingHTTPServer.request_queue_size = 128  # all streams connect at once
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
'''


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """Its pid and its port."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["many", *map(str, words)])
        many.main()
        return capsys.readouterr().out

    return run


def test_watch_says_how_memory_grew_and_which_answers_were_wrong(server, run, monkeypatch) -> None:
    monkeypatch.setattr(growth, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(many, "SAMPLE_SECONDS", 0.1)
    monkeypatch.setattr(many, "LEAST_MINUTES", 0)
    pid, port = server
    url = f"http://127.0.0.1:{port}"
    words = ("--url", url, "--pid", pid, "--count", 4, "--minutes", 0.02)
    told = json.loads(run("watch", *words))
    assert told["calls"] > 0
    assert 0 < told["start_mib"] < 1000
    assert isinstance(told["mib_per_1000_calls"], float)
    assert told["adapters_used"] == 3
    assert 0 < told["misnamed"] <= told["calls"]
    assert list(told["failed"]) == ["busy"]


def test_run_compares_eight_with_all_and_counts_what_was_loaded(server, run, monkeypatch) -> None:
    monkeypatch.setattr(many, "WARM_SECONDS", 0.1)
    url = f"http://127.0.0.1:{server[1]}"
    told = json.loads(run("run", "--url", url, "--count", 9, "--rounds", 2, "--seconds", 0.1))
    assert len(told["ratios"]) == 2
    assert (told["loads"], told["load_ms"]) == (2, 100.0)
    assert told["misnamed"] > 0


@pytest.mark.parametrize(
    ("minutes", "pid", "code"), [(1, 1, "options_clash"), (5, 2**22, "side_failed")]
)
def test_watch_refuses_what_it_can_not_measure(run, capsys, minutes, pid, code) -> None:
    with pytest.raises(SystemExit) as ended:
        run("watch", "--url", "http://127.0.0.1:1", "--pid", pid, "--minutes", minutes)
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(f"({code})\n")


def test_a_server_that_is_not_reached_is_a_failure_and_no_crash(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(many, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(many, "WARM_SECONDS", 0.1)
    with pytest.raises(SystemExit) as ended:
        run("run", "--url", "http://127.0.0.1:1")
    assert ended.value.code == 1
    assert "unreachable" in capsys.readouterr().err
