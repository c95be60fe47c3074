"""The processes of a running server."""

from __future__ import annotations

from pathlib import Path

from server.engine.environment import prepare
from server.settings import Settings


def field(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(key))


def test_the_engine_is_forked_and_has_what_vllm_preloads(server):
    engine = server.engine()
    parent = int(field(engine, "PPid:"))
    assert "lorry fork server" in Path(f"/proc/{parent}/cmdline").read_text()
    assert int(field(parent, "PPid:")) == server.process.pid
    assert field(parent, "Threads:") == "1"  # a fork takes no other along
    environ: dict[str, str] = {}
    prepare(Settings(model=Path()), environ)
    libraries = environ["LD_PRELOAD"].split(":")
    maps = Path(f"/proc/{engine}/maps").read_text()
    assert [library for library in libraries if library not in maps] == []
    assert any("libgomp" in library for library in libraries)
