"""Which marker each adapter and version answers: markers.json, beside the adapters' folders.

Written by loadtest/marked.py, read by all that judges answers; knows nothing of how they are made.
"""

from __future__ import annotations

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
    def base(self) -> str:
        return self.document.base

    @property
    def names(self) -> list[str]:
        """The adapters by number."""
        return sorted(self.document.adapters)

    def versions(self, name: str) -> list[int]:
        """Raises TargetUnfit when there is no such adapter."""
        return sorted(map(int, self._versions_of(name)))

    def marker(self, name: str, version: int) -> str:
        """Raises TargetUnfit when there is no such adapter or version."""
        return self._find(name, version).marker

    def folder(self, name: str, version: int) -> Path:
        """Raises TargetUnfit when there is no such adapter or version."""
        return self.root / self._find(name, version).folder

    def _find(self, name: str, version: int) -> Marked:
        found = self._versions_of(name).get(str(version))
        if found is None:
            raise TargetUnfit(
                f"{self.root} has no version {version} of {name}: make the marked adapters again "
                "with more versions"
            )
        return found

    def _versions_of(self, name: str) -> dict[str, Marked]:
        found = self.document.adapters.get(name)
        if found is None:
            raise TargetUnfit(
                f"{self.root} has no adapter {name}: publish to the server what is in that folder, "
                "or make more marked adapters"
            )
        return found


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
