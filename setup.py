"""Builds the compiled kernels (server/kernels/native) with the machine's C++ compiler.

All other metadata is in pyproject.toml. Without a compiler, PyTorch or an x86 processor the package
still installs, and uses the PyTorch implementations of the kernels.
"""

import platform
import runpy
from importlib import util
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("server/kernels/native")


def kernels() -> list[Extension]:
    sources = sorted(map(str, FOLDER.glob("[!.]*.cpp")))
    if platform.machine() != "x86_64" or util.find_spec("torch") is None or not sources:
        return []
    from torch.utils.cpp_extension import include_paths, library_paths

    digest = runpy.run_path("server/kernels/stamp.py")["digest"]
    return [
        Extension(
            "server.kernels._native",
            sources,
            depends=sorted(map(str, [*FOLDER.glob("[!.]*.h"), *FOLDER.parent.glob("[!.]*.py")])),
            include_dirs=include_paths(),
            library_dirs=library_paths(),
            # Not linked with OpenMP: uses the one PyTorch has loaded. Two would compete for cores.
            libraries=["c10", "torch_cpu"],
            define_macros=[("LORRY_STAMP", f'"{digest()}"')],
            # No -march: each file enables its own instructions, chosen at run time.
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++20",
                "-fopenmp",
                "-DAT_PARALLEL_OPENMP=1",
                "-w",
            ],
            optional=True,
        )
    ]


setup(ext_modules=kernels())
