"""Builds the compiled kernels (server/kernels/native) with the machine's own compiler.

Everything else about the package stands in pyproject.toml. Without a compiler, PyTorch or an x86
processor the package installs all the same, and the kernels' PyTorch versions serve.
"""

import platform
from importlib import util

from setuptools import Extension, setup

FOLDER = "server/kernels/native"
# No -march: each file names its own instructions, and what the processor has is asked at run time.
SOURCES = (
    "dispatch",
    "lora",
    "lora_amx",
    "lora_amx_few",
    "lora_avx2",
    "nf4",
    "nf4_amx",
    "nf4_avx2",
    "ops",
)
HEADERS = (
    "kernels",
    "amx",
    "avx2",
    "lora_avx512",
    "lora_job",
    "nf4",
    "nf4_avx512",
    "nf4_job",
    "operands",
    "threads",
)


def kernels() -> list[Extension]:
    if platform.machine() != "x86_64" or util.find_spec("torch") is None:
        return []
    from torch.utils.cpp_extension import include_paths, library_paths

    return [
        Extension(
            "server.kernels._native",
            [f"{FOLDER}/{name}.cpp" for name in SOURCES],
            depends=[f"{FOLDER}/{name}.h" for name in HEADERS],
            include_dirs=include_paths(),
            library_dirs=library_paths(),
            # Not OpenMP: the one that PyTorch has loaded serves, else two would share the cores.
            libraries=["c10", "torch_cpu"],
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
