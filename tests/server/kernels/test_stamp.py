"""Compiled kernels are identified by a digest of their sources."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.kernels import stamp

KERNELS = Path(stamp.__file__).parent
NAMES = ["operators.py", "plan.py", *(f"native/{each.name}" for each in stamp._sources())]


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout's kernels, as far as they are sources."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(KERNELS / name, tmp_path / name)
    monkeypatch.setattr(stamp, "_HERE", tmp_path)
    return tmp_path


def digest() -> str:
    return stamp.digest.__wrapped__()


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_any_source_changes_the_digest(copy: Path, name: str) -> None:
    assert digest() == stamp.digest()
    with (copy / name).open("a") as file:
        file.write("\n")
    assert digest() != stamp.digest()


@pytest.mark.parametrize("name", ["slots.h~", "ops.cpp.orig", ".ops.cpp", ".#ops.cpp", "a.txt"])
def test_an_editors_files_do_not_change_the_digest(copy: Path, name: str) -> None:
    (copy / "native" / name).symlink_to("nothing")
    assert digest() == stamp.digest()


def test_the_digest_covers_every_source() -> None:
    kept = subprocess.run(
        ["git", "ls-files", "native"], cwd=KERNELS, capture_output=True, text=True, check=False
    )
    assert kept.returncode or set(kept.stdout.split()) == set(NAMES[2:])
    assert {"native/ops.cpp", "native/slots.h"} <= set(NAMES)


def test_without_sources_any_stamp_passes_but_a_missing_one_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an installed package."""
    library = tmp_path / "_native.so"
    library.write_bytes(b"\0lorry kernels 0123456789abcdef\0")
    assert not stamp.is_current(library)
    shutil.copy(KERNELS / "operators.py", tmp_path)
    shutil.copy(KERNELS / "plan.py", tmp_path)
    monkeypatch.setattr(stamp, "_HERE", tmp_path)
    assert stamp.is_current(library)
    library.write_bytes(b"\0")
    assert not stamp.is_current(library)


@pytest.mark.parametrize("of", ["these", "others"])
def test_the_exit_code_says_whether_to_build_again(of: str, tmp_path: Path) -> None:
    folder = tmp_path / "server" / "kernels"
    (folder / "native").mkdir(parents=True)
    for name in ("__init__.py", "stamp.py", "versions.py", *NAMES):
        shutil.copy(KERNELS / name, folder / name)
    (tmp_path / "server" / "__init__.py").touch()
    built = stamp.digest() if of == "these" else "0123456789abcdef"
    (folder / "_native.so").write_bytes(f"lorry kernels {built}".encode())
    command = [sys.executable, "-m", "server.kernels.stamp"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == int(of == "others")
