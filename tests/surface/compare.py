"""Two versions of vLLM, symbol by symbol."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from tests.surface import ours, symbols
from tests.surface.sources import Found, Sources, text_of

Use = Literal["call", "replace", "read"]
Status = Literal["gone", "changed", "moved", "edited", "same"]
STATUSES: tuple[Status, ...] = ("gone", "changed", "moved", "edited", "same")


@dataclass(frozen=True)
class Symbol:
    """`places` are where it may be, one for each version that has it elsewhere; `takes` are the
    parameters that we pass."""

    places: tuple[str, ...]
    use: Use
    takes: tuple[str, ...] = ()
    on_cpu: bool = False

    @property
    def name(self) -> str:
        return self.places[0]

    def find(self, sources: Sources) -> Found | None:
        return next((found for each in self.places if (found := sources.find(each))), None)


@dataclass(frozen=True)
class Row:
    name: str
    old: str
    new: str
    status: Status
    on_cpu: bool


def all_symbols(installed: Sources) -> list[Symbol]:
    """The list, and what our sources name; each once, the strictest use first."""
    found = [
        *_replaced(installed),
        *_listed(symbols.CALLED, symbols.REPLACED, symbols.READ, on_cpu=False),
        *_listed(symbols.ON_CPU_CALLED, symbols.ON_CPU_REPLACED, symbols.ON_CPU_READ, on_cpu=True),
        *_imported(installed),
        *_of_plugin(installed),
    ]
    once: dict[str, Symbol] = {}
    for symbol in found:
        once.setdefault(symbol.name, symbol)
    return list(once.values())


def compare(old: Sources, new: Sources, wanted: Iterable[Symbol]) -> list[Row]:
    """What of vLLM's own is new, by symbol; then our assumptions."""
    own = [each for each in wanted if each.name.split(":")[0].split(".")[0] == "vllm"]
    rows = [_row(each, old, new) for each in own]
    for words, phrases in symbols.ASSUMPTIONS.items():
        if phrases.module.split(".")[0] == "vllm":
            rows.append(_assumed(words, phrases, old, new))
    return sorted(rows, key=lambda row: (STATUSES.index(row.status), row.name))


def _row(symbol: Symbol, old: Sources, new: Sources) -> Row:
    was, found = symbol.find(old), symbol.find(new)
    cells = [each.place if each else "-" for each in (was, found)]
    if was is None or found is None:
        return Row(symbol.name, *cells, "gone" if found is None else "changed", symbol.on_cpu)
    before, after = old.parameters(was), new.parameters(found)
    status: Status = "same"
    if missing := lacking(symbol, after):
        return Row(symbol.name, cells[0], f"no {', '.join(missing)}", "gone", symbol.on_cpu)
    if symbol.use != "read" and before != after:
        cells, status = _differing(before, after), "changed"
    elif was.module != found.module:
        status = "moved"
    elif symbol.use != "read" and _is_function(was) and text_of(was) != text_of(found):
        status = "edited"
    return Row(symbol.name, *cells, status, symbol.on_cpu)


def lacking(symbol: Symbol, parameters: list[str] | None) -> list[str]:
    """The parameters that we pass and a function does not take."""
    names = {each.strip("=") for each in parameters or ()}
    return [each for each in symbol.takes if parameters is not None and each not in names]


def _differing(before: list[str] | None, after: list[str] | None) -> list[str]:
    old, new = before or [], after or []
    left = [each for each in old if each not in new]
    come = [each for each in new if each not in old]
    return [f"({', '.join(left) or '...'})", f"({', '.join(come) or '...'})"]


def _is_function(found: Found) -> bool:
    return isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef)


def _assumed(words: str, phrases: symbols.Phrases, old: Sources, new: Sources) -> Row:
    cells = []
    for sources in (old, new):
        module = sources.module(phrases.module)
        missing = [each for each in phrases.words if module is None or each not in module.text]
        cells.append(f"lacks {missing[0].strip()!r}" if missing else phrases.module)
    status: Status = "same" if cells[1] == phrases.module else "gone"
    return Row(f"assumed: {words}", cells[0], cells[1], status, phrases.on_cpu)


def _listed(
    called: dict[str, str], replaced: Iterable[str], read: dict[str, str], *, on_cpu: bool
) -> Iterator[Symbol]:
    for place in replaced:
        yield Symbol((place,), "replace", on_cpu=on_cpu)
    for place, takes in called.items():
        yield Symbol((place,), "call", tuple(takes.split()), on_cpu)
    for module, paths in read.items():
        for path in paths.split() or [""]:
            yield Symbol((f"{module}:{path}",), "read", on_cpu=on_cpu)


def _replaced(installed: Sources) -> Iterator[Symbol]:
    """What we override or replace, by name in our sources."""
    for override in ours.overridden(installed, ours.files()):
        on_cpu = override.file in symbols.ON_CPU_FILES
        yield Symbol((override.place,), "replace", on_cpu=on_cpu)
    for place, changes in ours.replaced().items():
        on_cpu = {each.file for each in changes} <= symbols.ON_CPU_FILES
        # server/kernels/__init__.py has what is replaced on a processor, and what is everywhere.
        is_platform = ".platforms.cpu:" in place
        yield Symbol((installed.normal(place),), "replace", on_cpu=on_cpu or is_platform)


def _imported(installed: Sources) -> Iterator[Symbol]:
    for places, paths in ours.imported(ours.files()).items():
        each = tuple(installed.normal(place) for place in places.split(" | "))
        yield Symbol(each, "read", on_cpu=paths <= symbols.ON_CPU_FILES)


def _of_plugin(installed: Sources) -> Iterator[Symbol]:
    paths = ours.plugin_files(installed)
    for override in ours.overridden(installed, paths):
        yield Symbol((override.place,), "replace")
    for places in ours.imported(paths):
        yield Symbol((installed.normal(places),), "read")


def new_settings(old: Sources, new: Sources) -> dict[str, list[str]]:
    """Flags and variables that only the new version has: could one break a guarantee?"""
    return {
        "flags": sorted(_flags(new) - _flags(old)),
        "variables": sorted(_variables(new) - _variables(old)),
    }


def _flags(sources: Sources) -> set[str]:
    places = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
    frontend = [sources.find(f"{place}:FrontendArgs") for place in places]
    engine = sources.find("vllm.engine.arg_utils:AsyncEngineArgs")
    found = [each for each in (*frontend, engine) if each is not None]
    fields = {field.strip("=") for each in found for field in sources.fields(each)}
    return {f"--{field.replace('_', '-')}" for field in fields}


def _variables(sources: Sources) -> set[str]:
    module = sources.module("vllm.envs")
    text = module.text if module is not None else ""
    return set(re.findall(r"^    (VLLM_[A-Z0-9_]+):", text, re.MULTILINE))
