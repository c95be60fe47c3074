"""The house keeps its walls: which way imports go, which rooms are heavy, no import circle.

`python tests/test_architecture.py` prints the size of each package: files, lines, and the arrows
between its rooms.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "adapters", "training", "loadtest", "cluster", "bench")
ALLOWED = {
    "server": {"server", "adapters"},
    "adapters": {"adapters"},
    "training": {"training", "adapters"},
    "loadtest": {"loadtest"},  # HTTP and the command line only
    "cluster": {"cluster", "server", "adapters"},
    # a tool above them: it runs what they are
    "bench": {"bench", "server", "adapters", "loadtest", "training"},
}
ROOMS = {
    "vllm": ("server/engine/", "server/kernels/", "bench/side_vllm.py"),
    "torch": (
        "training/",
        "server/kernels/",
        "bench/",
        "loadtest/markers/",
        "loadtest/peers/",
    ),
    "transformers": ("training/", "server/engine/", "loadtest/peers/"),
    "peft": ("training/", "loadtest/peers/"),
    "trl": ("training/",),
    "bitsandbytes": ("training/", "server/kernels/", "bench/strategies.py"),
    "fastapi": ("server/", "loadtest/peers/"),
}
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            yield node.module


def needs_at_import(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports while it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def test_imports_go_one_way_and_heavy_ones_stay_in_their_rooms():
    faults = []
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        for name in imports(path):
            top = name.split(".")[0]
            if top in PACKAGES and top not in ALLOWED[place.split("/")[0]]:
                faults.append(f"{place} imports {name}")
            if top in ROOMS and not place.startswith(ROOMS[top]):
                faults.append(f"{place} imports {name}")
    assert faults == []


def test_no_modules_import_each_other():
    needs = {name: {*needs_at_import(path)} & {*MODULES} for name, path in MODULES.items()}
    while leaves := [name for name, others in needs.items() if not others - {name}]:
        for name in leaves:
            del needs[name]
        for others in needs.values():
            others.difference_update(leaves)
    assert needs == {}


def test_every_module_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if (source := path.read_text()).strip() and not ast.get_docstring(ast.parse(source))
    ]
    assert silent == []


def print_sizes() -> None:
    """A package's boxes are its rooms and the files at its top; arrows are imports between them."""
    for package in PACKAGES:
        files = [path for path in SOURCES if path.is_relative_to(ROOT / package)]
        lines = sorted(len(path.read_text().splitlines()) for path in files)
        functions = sorted(lengths_of_functions(files))
        arrows = {
            (box_of(dotted(path)), box_of(name))
            for path in files
            for name in imports(path)
            if name.startswith(f"{package}.") and box_of(name) != box_of(dotted(path))
        }
        boxes = {box_of(dotted(path)) for path in files} - {package}
        sys.stdout.write(
            f"{package:9} {len(files):3} files, {sum(lines):5} lines; median and p90 of files "
            f"{at(lines, 0.5):3} {at(lines, 0.9):3}, of functions {at(functions, 0.5):2} "
            f"{at(functions, 0.9):2}; {len(boxes):2} boxes, {len(arrows):2} arrows\n"
        )


def box_of(module: str) -> str:
    """`server.http` of `server.http.app`, `server.serve` of itself."""
    return ".".join(module.split(".")[:2])


def lengths_of_functions(files: list[Path]) -> Iterator[int]:
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or 0) - node.lineno + 1


def at(values: list[int], share: float) -> int:
    return values[int(share * (len(values) - 1))]


if __name__ == "__main__":
    print_sizes()
