"""Which marker each adapter and version answers: markers.json, beside the adapters' folders.

Written by markers/marked.py, read by all that judges answers; knows nothing of how they are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.errors import OptionsClash, TargetUnfit

FILE = "markers.json"


class Marked(msgspec.Struct, frozen=True):
    """One version of an adapter; its answers are `marker` over and over."""

    folder: str
    marker: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The file. `digest` says of what it was made, `base` is the name of the base's folder."""

    base: str
    digest: str
    adapters: dict[str, dict[str, Marked]]  # name -> version -> what it is


@dataclass(frozen=True, slots=True)
class Manifest:
    root: Path
    document: Document

    @property
    def names(self) -> list[str]:
        """The adapters by number."""
        return sorted(self.document.adapters)

    def marker(self, name: str, version: int) -> str | None:
        """None: no such adapter, or no such version of it."""
        found = self._find(name, version)
        return None if found is None else found.marker

    def folder(self, name: str, version: int) -> Path | None:
        """None: no such adapter, or no such version of it."""
        found = self._find(name, version)
        return None if found is None else self.root / found.folder

    def check_has(self, names: Iterable[str]) -> None:
        """Raises TargetUnfit when one of them is no marked adapter."""
        unknown = sorted(set(names) - self.document.adapters.keys())
        if unknown:
            raise TargetUnfit(
                f"{self.root} has no adapter {unknown[0]}: let the server have what is in that "
                "folder, or make more marked adapters"
            )

    def _find(self, name: str, version: int) -> Marked | None:
        return self.document.adapters.get(name, {}).get(str(version))


def load_manifest(folder: Path) -> Manifest:
    """Read `folder`/markers.json.

    Raises:
        OptionsClash: there is none, or it is not such a file.
    """
    path = folder / FILE
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise OptionsClash(
            f"can't read {path}: {error.strerror}; give the folder that marked adapters were made "
            "in"
        ) from None
    except msgspec.DecodeError as error:
        raise OptionsClash(
            f"{path} is not a file of markers ({error}); make the marked adapters again"
        ) from None
    return Manifest(folder.resolve(), document)
