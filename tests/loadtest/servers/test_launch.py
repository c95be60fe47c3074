"""Servers as processes: stand-ins that are ready, slow or broken.

Real processes: starts, signals and sessions are the subject.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from loadtest.errors import ServerFailed
from loadtest.servers import launch as module
from loadtest.servers import processes
from loadtest.servers.launch import Launch, free_port

WELL = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
    def log_message(self, *_): pass
print("up with", os.environ.get("GIVEN"), os.environ.get("VLLM_PLUGINS"), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""

# A server that takes a while until it is ready, and whose engine has vLLM's title.
ENGINE = WELL.replace("time.sleep", "setproctitle.setproctitle('VLLM::EngineCore'); time.sleep")
ENGINE = ENGINE.replace("import time;", "import setproctitle, time;")


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LINGER_SECONDS", 0.1)  # its child process does not end by itself
    made = []

    def make(source: str, patience: float = 30.0, ready: str = "/ready") -> Launch:
        port = free_port()
        command = [sys.executable, "-c", source, str(port)]
        log = tmp_path / "server.log"
        made.append(
            Launch(command, {"GIVEN": "it"}, port=port, ready=ready, log=log, patience=patience)
        )
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_a_server_starts_and_stops_with_its_whole_session(launch):
    server = launch(WELL)
    server.start()
    assert 0 < server.start_seconds < 30
    assert len(processes.members(server.session)) == 2
    assert processes.held_bytes(server.session) > 1 << 20
    server.stop()
    assert processes.members(server.session) == []


def test_a_restart_keeps_the_address_and_appends_to_the_log(launch, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "the shell's")
    server = launch(WELL)
    server.start()
    first, url = server.session, server.url
    server.stop()
    server.start()
    assert server.session != first
    assert server.url == url
    assert server.log.read_text() == "up with it None\n" * 2


def test_a_frozen_server_stops(launch):
    server = launch(WELL)
    server.start()
    processes.send(server.session, signal.SIGSTOP)
    server.stop()
    assert processes.members(server.session) == []


def test_a_server_that_ends_early_is_reported_with_its_last_line(launch):
    server = launch("print('no such model'); print(); raise SystemExit(3)")
    with pytest.raises(ServerFailed, match=r"code 3.*no such model") as failed:
        server.start()
    assert str(server.log) in str(failed.value)


def test_a_server_that_is_never_ready_is_killed(launch):
    server = launch(WELL, patience=0.5, ready="/other")
    with pytest.raises(ServerFailed, match="not ready within 0 s"):
        server.start()
    assert processes.members(server.session) == []


def test_stopping_a_killed_server_works(launch):
    server = launch(WELL)
    server.start()
    os.kill(server.session, signal.SIGKILL)
    time.sleep(0.05)
    server.stop()
    assert processes.members(server.session) == []


def test_the_engine_alone_is_killed_and_only_once_the_server_is_ready(launch):
    server = launch(ENGINE)
    server.start()
    while not (engines := processes.titled(server.session, "VLLM::EngineCore")):
        time.sleep(0.02)
    assert len(engines) == 1
    assert server.session not in engines
    processes.send(server.session, signal.SIGSTOP)  # not ready
    killing = threading.Thread(target=server.kill_engine)
    killing.start()
    killing.join(0.3)
    assert processes.titled(server.session, "VLLM::EngineCore") == engines
    processes.send(server.session, signal.SIGCONT)
    killing.join()
    while processes.members(server.session) != [server.session]:
        time.sleep(0.02)
    assert server.ended is None


def test_a_server_without_an_engine_process_or_that_ended_has_none_to_kill(launch):
    server = launch(WELL)
    server.start()
    with pytest.raises(ServerFailed, match="has no engine process"):
        server.kill_engine()
    os.kill(server.session, signal.SIGKILL)
    with pytest.raises(ServerFailed, match="ended with code -9"):
        server.kill_engine()


def test_only_a_server_that_ends_by_itself_is_reported(launch):
    server = launch(WELL)
    server.start()
    assert server.ended is None
    server.stop()
    assert server.ended is None
    server.start()
    os.kill(server.session, signal.SIGKILL)
    time.sleep(0.05)
    assert "ended with code -9" in str(server.ended)
