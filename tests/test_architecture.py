"""The house keeps its walls: who may import whom, which rooms are heavy, how long a file gets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "adapters", "training", "loadtest", "bench")
ALLOWED = {
    "server": {"server", "adapters"},
    "adapters": {"adapters"},
    "training": {"training", "adapters"},
    "loadtest": {"loadtest"},  # HTTP and the command line only
    "bench": {
        "bench",
        "server",
        "adapters",
        "loadtest",
    },  # a tool above them: it runs what they are
}
ROOMS = {
    "vllm": ("server/engine/", "server/kernels/", "bench/side_vllm.py"),
    "torch": (
        "training/",
        "server/kernels/",
        "bench/",
        "loadtest/checkpoint.py",
        "loadtest/marked.py",
        "loadtest/peers/",
    ),
    "transformers": ("training/", "loadtest/peers/"),
    "peft": ("training/", "loadtest/peers/"),
    "trl": ("training/",),
    "bitsandbytes": ("training/", "server/kernels/", "bench/strategies.py"),
    "fastapi": ("server/", "loadtest/peers/"),
}
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EXAMPLES = sorted(p for top in ("deploy", "examples") for p in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way_and_heavy_ones_stay_in_their_rooms(path):
    place = str(path.relative_to(ROOT))
    for name in imports(path):
        top = name.split(".")[0]
        if top in PACKAGES:
            assert top in ALLOWED[place.split("/")[0]], f"{place} imports {name}"
        if top in ROOMS:
            assert place.startswith(ROOMS[top]), f"{place} imports {name}"


@pytest.mark.parametrize(
    "path", [*SOURCES, *TESTS, *EXAMPLES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_stay_small_enough_to_hold_in_the_head(path):
    limit = 500 if path in TESTS else 400
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    source = path.read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source))
