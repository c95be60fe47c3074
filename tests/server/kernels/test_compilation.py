"""A compiled model that was saved is found again, by another process as at a server's start."""

import subprocess
import sys
from pathlib import Path

SAVE = """
import sys, torch
def twice(x): return x * 2 + 1
compiled = torch.compile(twice, fullgraph=True).aot_compile(((torch.ones(3),), {}))
compiled.save_compiled_function(sys.argv[1])
"""
LOAD = """
import sys, torch
from server.kernels import compilation
compilation.install()
compilation.install()
with open(sys.argv[1], "rb") as file:
    loaded = torch.compiler.load_compiled_function(file)
loaded._artifacts.compiled_fn.finalize_loading(None)
print(loaded(torch.full((3,), 4.0)).tolist())
"""


def test_a_saved_function_can_be_finished_as_vllm_does(tmp_path: Path) -> None:
    saved = str(tmp_path / "compiled")
    for program in (SAVE, LOAD):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, saved],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split("\n")[-2] == "[9.0, 9.0, 9.0]"
