"""The kernels of other processors, with their instructions in plain C++.

A processor runs only its own kernels, and the tests may run on any. So a copy of the sources calls
emulation/instructions.h instead of AVX-512 and AMX instructions; it is compiled, and the kernels'
own tests run on it in another process, as operators register only once.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.kernels import operators

ROOT = Path(__file__).parents[3]
NATIVE = "server/kernels/native"
TESTS = "tests/server/kernels"
INSTRUCTIONS = "emulation/instructions.h"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kernels and their tests, compiled with emulated instructions."""
    if not operators.has_native():
        pytest.skip("no compiled kernels for this processor (AVX2), or no compiler")
    copy = tmp_path_factory.mktemp("emulated")
    ignored = shutil.ignore_patterns("_native*", "__pycache__")
    for folder in ("server", TESTS):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "tests/conftest.py"):
        shutil.copy(ROOT / file, copy / file)
    # Compiling takes longer than running: half the optimisation is faster overall.
    (copy / "setup.py").write_text((copy / "setup.py").read_text().replace('"-O3"', '"-O1"'))
    emulate(copy / NATIVE, copy / TESTS / INSTRUCTIONS)
    built = run(copy, "setup.py", "--quiet", "build_ext", "--inplace")
    assert list((copy / "server/kernels").glob("_native*.so")), built
    return copy


def emulate(native: Path, instructions: Path) -> None:
    """Name the emulated instructions in place of the processor's, and let all kernels run here."""
    for source in [*native.glob("*.cpp"), *native.glob("*.h")]:
        text = source.read_text()
        text = re.sub(
            r'#pragma GCC target\("avx512.*',
            f'#pragma GCC target("avx2,fma")\n#include "{instructions}"',
            text,
        )
        text = re.sub(r"\b_(mm512_|mm256_mask|mm_cvtneps_pbh|tile_)", r"emulated_\1", text)
        if source.name == "dispatch.cpp":
            text = re.sub(r'__builtin_cpu_supports\("(avx512|amx)[^"]*"\)', "true", text)
            text = re.sub(r"syscall\(.*?\)", "0", text)
        source.write_text(text)


def run(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return ran.stdout


def test_kernels_of_other_processors_pass_their_tests(checkout):
    files = [f"{TESTS}/test_{name}.py" for name in ("nf4", "operators")]
    which = "AVX512-BF16 or AMX-BF16"
    said = run(checkout, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", which, *files)
    assert re.search(r"= \d+ passed, \d+ deselected in ", said), said  # and none skipped
    for each in which.split(" or "):
        assert len(re.findall(rf"{each}.* PASSED", said)) > 30, said
