"""Python packages as source text: looks up names without importing anything.

A name is `module:path`, such as `vllm.v1.engine.core:EngineCore.collective_rpc`; `module:` is the
module. Follows imports, base classes, attributes that methods set, and the class in an annotation
(`current_platform: Platform`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    name: str
    tree: ast.Module
    text: str
    is_package: bool


@dataclass(frozen=True)
class Found:
    """Where a name is defined."""

    module: str
    node: ast.AST

    @property
    def place(self) -> str:
        return f"{self.module}:{getattr(self.node, 'lineno', 1)}"


class Sources:
    """The packages in `folder`, as in site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = cache(self._read)

    def _read(self, name: str) -> Module | None:
        stem = self.folder / name.replace(".", "/")
        for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if path.is_file():
                text = path.read_text()
                return Module(name, ast.parse(text), text, path.name == "__init__.py")
        return None

    def find(self, symbol: str) -> Found | None:
        module, _, path = symbol.partition(":")
        return self._find(module, path.split(".") if path else [], frozenset())

    def normal(self, symbol: str) -> str:
        """The same name with the colon behind the last module: `vllm:sampling_params.x` is
        `vllm.sampling_params:x`."""
        module, _, path = symbol.partition(":")
        name, _, rest = path.partition(".")
        if name and self.module(f"{module}.{name}") is not None:
            return self.normal(f"{module}.{name}:{rest}")
        return symbol

    def parameters(self, found: Found) -> list[str] | None:
        """A function's parameters, such as `self`, `*`, `within=`, `**kwargs`; of a class, those of
        its construction. None for what is neither."""
        if isinstance(found.node, FUNCTIONS):
            return list(_parameters(found.node.args))
        if not isinstance(found.node, ast.ClassDef):
            return None
        made = self._attribute(found, "__init__", frozenset())
        if made is not None and isinstance(made.node, FUNCTIONS):
            return list(_parameters(made.node.args))
        return ["self", *self.fields(found)]

    def fields(self, found: Found) -> list[str]:
        """The fields of a dataclass or Struct, and of those that it derives from."""
        assert isinstance(found.node, ast.ClassDef)
        inherited = [field for base in self._bases(found) for field in self.fields(base)]
        own = [
            f"{each.target.id}{'' if each.value is None else '='}"
            for each in found.node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        ]
        return [*inherited, *own]

    def _find(self, module: str, path: list[str], seen: frozenset[str]) -> Found | None:
        key = f"{module}:{'.'.join(path)}"
        read = self.module(module)
        if read is None or key in seen:
            return None
        seen |= {key}
        if not path:
            return Found(module, read.tree)
        name, *rest = path
        found = None
        for node in _defining(read.tree, name):  # the last definition that leads anywhere
            found = self._follow(Found(module, node), name, rest, seen) or found
        return (
            found or self._find(f"{module}.{name}", rest, seen) or self._starred(read, path, seen)
        )

    def _starred(self, read: Module, path: list[str], seen: frozenset[str]) -> Found | None:
        for node in _statements(read.tree.body):
            is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            if is_star and (found := self._find(self._source(read.name, node), path, seen)):
                return found
        return None

    def _follow(
        self, found: Found, name: str, rest: list[str], seen: frozenset[str]
    ) -> Found | None:
        node = found.node
        if isinstance(node, ast.ImportFrom):
            source, wanted = self._source(found.module, node), _original(node, name)
            if source.partition(".")[0] != found.module.partition(".")[0]:
                return None if rest else found  # another package's: it is where it is imported
            inner = self._find(source, [wanted, *rest], seen)
            return inner or self._find(f"{source}.{wanted}", rest, seen)
        if isinstance(node, ast.Import):
            return self._find(_original(node, name), rest, seen)
        if not rest:
            return found
        if isinstance(node, ast.AnnAssign):
            annotated = ast.unparse(node.annotation)
            return self._find(found.module, [*annotated.split("."), *rest], seen)
        return self._attribute(found, rest[0], seen) if len(rest) == 1 else None

    def _attribute(self, found: Found, name: str, seen: frozenset[str]) -> Found | None:
        if not isinstance(found.node, ast.ClassDef):
            return None
        own = [*_defining(found.node, name)] or [*_set_in_methods(found.node, name)]
        if own:
            return Found(found.module, own[-1])
        for base in self._bases(found):
            if inherited := self._attribute(base, name, seen):
                return inherited
        return None

    def _bases(self, found: Found) -> Iterator[Found]:
        assert isinstance(found.node, ast.ClassDef)
        for base in found.node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base
            path = ast.unparse(named).split(".")
            above = self._find(found.module, path, frozenset())
            if above is not None and isinstance(above.node, ast.ImportFrom):  # another package's
                above = self.find(f"{above.node.module}:{_original(above.node, path[-1])}")
            if above is not None and isinstance(above.node, ast.ClassDef):
                yield above

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        read = self.module(module)
        assert read is not None
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + read.is_package]
        return ".".join([*parts, *filter(None, [node.module])])


def text_of(found: Found) -> str:
    """What a definition does, without its docstring and comments."""
    node = deepcopy(found.node)
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
        del body[0]
    return ast.dump(node)


def _defining(parent: ast.AST, name: str) -> Iterator[ast.AST]:
    """The statements of a module or class that define a name, those below `if` and `try` too."""
    for node in _statements(getattr(parent, "body", [])):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            is_it = node.name == name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            is_it = any((each.asname or each.name) == name for each in node.names)
        elif isinstance(node, ast.Assign):
            is_it = any(_is_named(target, name) for target in node.targets)
        else:
            is_it = isinstance(node, ast.AnnAssign) and _is_named(node.target, name)
        if is_it:
            yield node


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _is_named(target: ast.expr, name: str) -> bool:
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    return any(isinstance(each, ast.Name) and each.id == name for each in names)


def _set_in_methods(owner: ast.ClassDef, name: str) -> Iterator[ast.AST]:
    for method in owner.body:
        if isinstance(method, FUNCTIONS):
            for node in ast.walk(method):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and node.attr == name
                    and isinstance(node.value, ast.Name)
                    and node.value.id in ("self", "cls")
                ):
                    yield node


def _original(node: ast.Import | ast.ImportFrom, name: str) -> str:
    return next(each.name for each in node.names if (each.asname or each.name) == name)


def _parameters(given: ast.arguments) -> Iterator[str]:
    positional = [*given.posonlyargs, *given.args]
    without = len(positional) - len(given.defaults)
    for at, each in enumerate(positional):
        yield each.arg + ("=" if at >= without else "")
    if given.vararg is not None:
        yield f"*{given.vararg.arg}"
    elif given.kwonlyargs:
        yield "*"
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield each.arg + ("" if default is None else "=")
    if given.kwarg is not None:
        yield f"**{given.kwarg.arg}"
