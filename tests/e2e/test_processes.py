"""The processes of a running server."""

from __future__ import annotations

from pathlib import Path


def field(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(key))


def test_the_engine_is_forked_and_has_what_vllm_preloads(server):
    engine = server.engine()
    parent = int(field(engine, "PPid:"))
    assert "multiprocessing.forkserver" in Path(f"/proc/{parent}/cmdline").read_text()
    assert int(field(parent, "PPid:")) == server.process.pid
    assert field(parent, "Threads:") == "1"  # a fork takes no other along
    environ = Path(f"/proc/{parent}/environ").read_text()
    preloaded = next(each for each in environ.split("\0") if each.startswith("LD_PRELOAD="))
    libraries = preloaded.removeprefix("LD_PRELOAD=").split(":")
    maps = Path(f"/proc/{engine}/maps").read_text()
    assert [library for library in libraries if library not in maps] == []
    assert any("libgomp" in library for library in libraries)
