"""What of vLLM our own sources name: imports, methods that we override, names that we replace.

And what the plugin names that brings NF4, whose author may lag behind vLLM.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.surface.sources import FUNCTIONS, Sources

Function = ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("server/engine", "server/kernels")


def files() -> list[Path]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
    return [*found, ROOT / "bench" / "side_vllm.py"]


def plugin_files(installed: Sources) -> list[Path]:
    return sorted((installed.folder / "vllm_bnb_plugin").rglob("*.py"))


def imported(paths: list[Path]) -> dict[str, set[str]]:
    """{where an imported name may be: the files}. Places of one name in one file are joined by `|`:
    which of them it is depends on the version."""
    found: dict[str, set[str]] = {}
    for path in paths:
        places: dict[str, list[str]] = {}
        for local, place in _imports(ast.parse(path.read_text())):
            places.setdefault(local, []).append(place)
        for each in places.values():
            found.setdefault(" | ".join(dict.fromkeys(each)), set()).add(path.name)
    return found


@dataclass(frozen=True)
class Override:
    """A method of ours in the place of one of vLLM's."""

    place: str
    file: str
    method: Function


def overridden(vllm: Sources, paths: list[Path]) -> list[Override]:
    """The methods of vLLM's classes that subclasses in these files define anew."""
    found = []
    classes: dict[str, tuple[ast.ClassDef, str]] = {}
    bases: dict[str, str] = {}  # of these classes: a class of vLLM, or another of these
    for path in paths:
        tree = ast.parse(path.read_text())
        names = dict(_imports(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.bases:
                base = ast.unparse(node.bases[0])
                classes[node.name] = node, path.name
                bases[node.name] = names.get(base, base)
    for name, (node, file) in classes.items():
        base = bases[name]
        while base in bases:
            base = bases[base]
        for each in node.body:
            if isinstance(each, FUNCTIONS) and ":" in base and vllm.find(f"{base}.{each.name}"):
                found.append(Override(f"{base}.{each.name}", file, each))
    return found


@dataclass(frozen=True)
class Change:
    """An assignment to what is vLLM's, in a function of ours."""

    file: str
    function: str
    decorators: tuple[str, ...]


def replaced() -> dict[str, list[Change]]:
    """{an attribute of what we import from vLLM: where we assign it}."""
    found: dict[str, list[Change]] = {}
    for path in files():
        tree = ast.parse(path.read_text())
        names = dict(_imports(tree))
        for target, around in _assigned(tree, []):
            root, _, attribute = ast.unparse(target).partition(".")
            if root in names:
                place = names[root]
                dotted = f"{place}.{attribute}" if not place.endswith(":") else place + attribute
                found.setdefault(dotted, []).append(_change(path, around))
    return found


def _change(path: Path, around: list[Function]) -> Change:
    if not around:
        return Change(path.name, "", ())
    outermost = around[0]
    decorators = tuple(ast.unparse(each) for each in outermost.decorator_list)
    return Change(path.name, outermost.name, decorators)


def _assigned(node: ast.AST, around: list[Function]) -> Iterator[tuple[ast.expr, list[Function]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            yield from _assigned(child, [*around, child])
        else:
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                yield child, around
            yield from _assigned(child, around)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(the local name, `module:name`) of each import from vLLM."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for each in node.names:
                yield each.asname or each.name, f"{node.module}:{each.name}"
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "vllm":
                    yield each.asname or each.name, f"{each.name}:"
