"""The marker of each adapter and version: markers.json, next to the adapters' folders.

Written by markers/marked.py. Independent of how adapters are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.errors import OptionsClash, TargetUnfit

FILE = "markers.json"


class Marked(msgspec.Struct, frozen=True):
    """One version of an adapter, whose answers repeat `marker`."""

    folder: str
    marker: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content. `digest` identifies its inputs, `base` is the base folder's name."""

    base: str
    digest: str
    adapters: dict[str, dict[str, Marked]]  # name -> version -> marker


@dataclass(frozen=True, slots=True)
class Manifest:
    root: Path
    document: Document

    @property
    def names(self) -> list[str]:
        """The adapters by number."""
        return sorted(self.document.adapters)

    def marker(self, name: str, version: int) -> str | None:
        """None: there is no such adapter or version."""
        found = self._find(name, version)
        return None if found is None else found.marker

    def folder(self, name: str, version: int) -> Path | None:
        """None: there is no such adapter or version."""
        found = self._find(name, version)
        return None if found is None else self.root / found.folder

    def check_has(self, names: Iterable[str]) -> None:
        """Raises TargetUnfit if one of them is not a marked adapter."""
        unknown = sorted(set(names) - self.document.adapters.keys())
        if unknown:
            raise TargetUnfit(
                f"{self.root} has no adapter {unknown[0]}: publish the adapters of that folder "
                "on the server, or make more marked adapters"
            )

    def _find(self, name: str, version: int) -> Marked | None:
        return self.document.adapters.get(name, {}).get(str(version))


def load_manifest(folder: Path) -> Manifest:
    """Read `folder`/markers.json.

    Raises:
        OptionsClash: the file is missing or invalid.
    """
    path = folder / FILE
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise OptionsClash(
            f"can't read {path}: {error.strerror}; give the folder that `lorry loadtest mark` wrote"
        ) from None
    except msgspec.DecodeError as error:
        raise OptionsClash(
            f"{path} is not a file of markers ({error}); make the marked adapters again"
        ) from None
    return Manifest(folder.resolve(), document)
