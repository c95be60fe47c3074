"""Fetching llama.cpp's source, as far as it needs neither network nor compiler."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from loadtest.peers.llama_cpp.build import SOURCE, TOOLS, is_current, unpack


def test_llama_cpp_alone_is_unpacked_and_nothing_outside_the_folder(tmp_path: Path):
    sdist = tmp_path / "sdist.tar.gz"
    names = ("setup.py", "vendor/llama.cpp/CMakeLists.txt", "vendor/llama.cpp/src/a.cpp")
    with tarfile.open(sdist, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(f"llama_cpp_python-1/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    unpack(sdist, tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["CMakeLists.txt", "a.cpp"]


def test_another_pinned_version_is_fetched_anew(tmp_path: Path):
    assert not is_current(tmp_path)
    (tmp_path / SOURCE.name).write_bytes(SOURCE.read_bytes())
    assert is_current(tmp_path)
    (tmp_path / SOURCE.name).write_text("llama-cpp-python==0.0.1\n")
    assert not is_current(tmp_path)


def test_everything_that_pip_fetches_is_pinned_by_its_hash():
    for file in (SOURCE, TOOLS):
        lines = [line for line in file.read_text().splitlines() if line[:1] not in ("#", "")]
        assert "==" in lines[0]
        assert "--hash=sha256:" in "".join(lines)
