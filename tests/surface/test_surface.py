"""Everything of vLLM that Lorry depends on is in the installed vLLM, and each patch says where it
is needed. What moved in another version: `make surface VLLM=...`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from server.kernels.versions import KNOWN, Versions, installed, patch
from tests.surface import ours, symbols
from tests.surface.__main__ import installed_sources, main
from tests.surface.compare import all_symbols, compare, lacking
from tests.surface.fetch import KEPT
from tests.surface.sources import FUNCTIONS, Sources

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

INSTALLED = installed_sources()[1]
# Where what is replaced has a computed name, which no reading of our sources finds.
COMPUTED = {
    ("__init__.py", "_install_staging"),
    ("engine_patches.py", "make_room_for_frames"),
    ("engine_patches.py", "_load_what_was_compiled"),
    ("slots.py", "install_joined_slots"),
    ("slots.py", "install_slot_copy"),
}


def test_the_installed_vllm_has_every_symbol_and_takes_what_we_pass() -> None:
    missing = []
    for symbol in all_symbols(INSTALLED):
        found = symbol.find(INSTALLED)
        lacks = lacking(symbol, INSTALLED.parameters(found)) if found else ["all of it"]
        missing += [(symbol.name, lacks)] if lacks else []
    assert missing == []


def test_what_the_sources_say_is_what_is_imported() -> None:
    wrong = []
    for symbol in all_symbols(INSTALLED):
        found = symbol.find(INSTALLED)
        if symbol.use == "read" or found is None or not isinstance(found.node, FUNCTIONS):
            continue
        place = next(each for each in symbol.places if INSTALLED.find(each))
        module, _, path = place.partition(":")
        function: Any = reduce(getattr, path.split("."), importlib.import_module(module))
        if isinstance(function, property) or _package(function.__module__) != _package(module):
            continue  # a test before this one has made a patch, Lorry's or the NF4 plugin's
        read = {each.strip("*=") for each in INSTALLED.parameters(found) or ()} - {"", "cls"}
        taken = set(inspect.signature(inspect.unwrap(function)).parameters)
        if read - {"self"} != taken - {"self"}:
            wrong.append((place, read ^ taken))
    assert wrong == []


def _package(module: str) -> str:
    return module.partition(".")[0]


def test_each_method_that_we_override_takes_what_vllm_passes() -> None:
    narrower = []
    for override in ours.overridden(INSTALLED, ours.files()):
        theirs = INSTALLED.find(override.place)
        assert theirs is not None
        passed = INSTALLED.parameters(theirs)
        if passed is not None and (lacks := _not_taken(override.method.args, passed)):
            narrower.append((override.place, lacks))
    assert narrower == []


def _not_taken(given: ast.arguments, passed: list[str]) -> list[str]:
    """The parameters of `passed` for which a method has no room, by position or by name."""
    split = passed.index("*") if "*" in passed else len(passed)
    positional = [each for each in passed[:split] if not each.startswith("*")]
    keywords = [each.strip("=") for each in passed[split + 1 :] if not each.startswith("*")]
    taken = [*given.posonlyargs, *given.args]
    lacks = []
    if given.vararg is None and given.kwarg is None:
        lacks += positional[len(taken) :]
    if given.kwarg is None:
        names = {each.arg for each in [*taken, *given.kwonlyargs]}
        lacks += [each for each in keywords if each not in names]
    return lacks


def test_vllm_still_works_as_assumed() -> None:
    broken = [
        f"{assumption}: {phrases.module} no longer has {words!r}"
        for assumption, phrases in symbols.ASSUMPTIONS.items()
        for words in phrases.words
        if (module := INSTALLED.module(phrases.module)) is None or words not in module.text
    ]
    assert broken == []


def test_nothing_else_on_a_cpu_depends_on_lora() -> None:
    """server/kernels/engine_patches.py hides LoRA from vLLM meanwhile."""
    module = INSTALLED.module("vllm.platforms.cpu")
    assert module is not None
    assert module.text.count("lora_config") == 1


def test_the_wrapper_has_every_method_that_lora_layers_call() -> None:
    """Mixture-of-experts layers call other modules; vLLM supports none of them on a CPU."""
    import vllm.lora.layers

    from server.kernels.lora import PlannedPunicaWrapper

    layers = Path(vllm.lora.layers.__file__).parent.glob("*.py")
    asked = {
        name for layer in layers for name in re.findall(r"punica_wrapper\.(\w+)", layer.read_text())
    }
    assert asked - set(vars(PlannedPunicaWrapper)) == {"_embeddings_indices"}


def test_every_patch_says_which_versions_need_it() -> None:
    undeclared = [
        (place, change.file, change.function)
        for place, changes in ours.replaced().items()
        for change in changes
        if not _is_declared(change.decorators)
    ]
    computed = {
        (path.name, node.name)
        for path in ours.files()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and _is_declared(tuple(ast.unparse(each) for each in node.decorator_list))
    }
    assert undeclared == []
    assert COMPUTED - computed == set()


def _is_declared(decorators: tuple[str, ...]) -> bool:
    return any(each.startswith("patch(") for each in decorators)


def test_a_patch_is_made_only_in_the_versions_that_need_it(monkeypatch) -> None:
    import vllm

    made = []

    @patch("0.32", before="0.33")
    def fix() -> None:
        made.append("fix")

    @patch("0.32")
    def guard() -> None:
        made.append("guard")

    found = {}
    for version in ("0.31.9", "0.32.0", "0.32.1+cpu", "0.33.0", "0.34.0rc1", "0.320.0", "dev"):
        monkeypatch.setattr(vllm, "__version__", version)
        made.clear()
        fix()
        guard()
        found[version] = list(made)
    both, later = ["fix", "guard"], ["guard"]
    assert found == {
        "0.31.9": [],
        "0.32.0": both,
        "0.32.1+cpu": both,
        "0.33.0": later,
        "0.34.0rc1": later,
        "0.320.0": later,
        "dev": later,
    }


def test_the_installed_version_is_a_known_one() -> None:
    assert installed() in KNOWN
    assert str(Versions("0.32", "0.34")) == "from 0.32 on, before 0.34"


OLD = """
from other import taken
class Base:
    size: int = 0
    def inherited(self, a): self.made = a
class Engine(Base):
    def same(self, a, *, b=None): return a
    def edited(self, a): return a
    def changed(self, a): return a
    def gone(self): ...
    def passed(self, a, b): ...
def moved(): ...
"""
NEW = """
from other import taken
class Base:
    size: int = 0
    def inherited(self, a): self.made = a
class Engine(Base):
    def same(self, a, *, b=None):
        "Other words."
        return a  # and a comment
    def edited(self, a): return a + 1
    def changed(self, a, c): return a
    def passed(self, a): ...
"""


@pytest.fixture
def two(tmp_path: Path) -> tuple[Sources, Sources]:
    for version, text in (("old", OLD), ("new", NEW)):
        package = tmp_path / version / "vllm"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "engine.py").write_text(text)
    (tmp_path / "new" / "vllm" / "common.py").write_text("def moved(): ...\n")
    return Sources(tmp_path / "old"), Sources(tmp_path / "new")


@pytest.mark.parametrize(
    ("places", "use", "takes", "status"),
    [
        ("vllm.engine:Engine.same", "replace", (), "same"),
        ("vllm.engine:Engine.inherited", "replace", (), "same"),
        ("vllm.engine:Engine.size", "read", (), "same"),
        ("vllm.engine:Engine.made", "read", (), "same"),
        ("vllm.engine:taken", "read", (), "same"),
        ("vllm.engine:Engine.edited", "call", ("a",), "edited"),
        ("vllm.engine:Engine.edited", "read", (), "same"),
        ("vllm.engine:Engine.changed", "replace", (), "changed"),
        ("vllm.engine:Engine.gone", "call", (), "gone"),
        ("vllm.engine:Engine.passed", "call", ("b",), "gone"),
        ("vllm.common:moved | vllm.engine:moved", "read", (), "moved"),
        ("vllm.engine:moved", "read", (), "gone"),
        ("vllm.engines:", "read", (), "gone"),
    ],
)
def test_what_moved_between_two_versions_is_told(two, monkeypatch, places, use, takes, status):
    from tests.surface.compare import Symbol

    monkeypatch.setattr(symbols, "ASSUMPTIONS", {})
    (row,) = compare(*two, [Symbol(tuple(places.split(" | ")), use, takes)])
    assert row.status == status


def test_an_assumption_that_no_longer_holds_is_told(two, monkeypatch) -> None:
    phrases = symbols.Phrases("vllm.engine", ("def gone(self)",))
    monkeypatch.setattr(symbols, "ASSUMPTIONS", {"it goes": phrases})
    (row,) = compare(*two, [])
    assert (row.status, row.new) == ("gone", "lacks 'def gone(self)'")


def test_the_command_fails_where_something_is_gone(two, tmp_path, monkeypatch, capsys) -> None:
    run = ["surface", "0.99.0", "--sources", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", run)
    assert main() == 1
    printed = capsys.readouterr().out
    assert "vllm.lora.request:LoRARequest | " in printed
    assert "gone" in printed.splitlines()[-1]
    monkeypatch.setattr(sys, "argv", [*run[:3], str(tmp_path)])
    with pytest.raises(SystemExit, match="has no folder `vllm`"):
        main()


def test_fetched_sources_are_kept_out_of_the_repository() -> None:
    asked = ["git", "check-ignore", "--quiet", str(KEPT / "0.33.0")]
    assert subprocess.run(asked, cwd=ours.ROOT, check=False).returncode == 0
