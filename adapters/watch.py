"""Watches a folder: a sub-folder NAME dropped there is published as NAME once it is complete.

Complete is: its config and weights are there, and neither changed between two looks. What is
incomplete or refused is reported once, left in place, and looked at again when its files change.
Nothing is deleted, no link is followed, and nothing is remembered on disk: bytes that a name has
already are not a new version, so starting again is harmless. Knows nothing of stores: `publish`
does, and must leave bytes as they are that the name has (adapters.publish with `if_new`).
"""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.catalog.versions import AdapterVersion
from adapters.errors import AdapterError, BaseUnreadable, CatalogError, StoreError
from adapters.store.files import CONFIG, PICKLES, PROVENANCE, WEIGHTS

IGNORE = ".lorry-ignore"
# Names that writers give to what is not finished.
UNFINISHED = re.compile(r"^\.|~$|\.(tmp|temp|part|partial|incomplete|crdownload|swp)$", re.I)
FILES = (CONFIG, WEIGHTS, PROVENANCE, *PICKLES)
# The disk, the catalog or the base may be back at the next look; everything else needs other files.
PASSING = (StoreError, CatalogError, BaseUnreadable)

Signature = tuple[tuple[str, int, int, int], ...]
Publish = Callable[[Path, str], AdapterVersion]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What became of one sub-folder (of the watched folder itself: `name` is empty)."""

    name: str
    status: Literal["published", "waiting", "refused", "failed"]
    message: str
    version: AdapterVersion | None = None
    error: AdapterError | None = None


@dataclass(slots=True)
class _Known:
    """A sub-folder as last looked at. Settled: there is nothing to do until it changes."""

    signature: Signature
    settled: bool = False


class Watcher:
    """Looks into `folder` every `interval` seconds; `report` is called once for each piece of news.

    `poll` may be called by hand, or `start` and `stop` run it in a thread of its own.
    """

    def __init__(
        self,
        folder: Path,
        publish: Publish,
        report: Callable[[Sighting], None],
        interval: float = 2.0,
    ) -> None:
        self._folder = folder
        self._publish = publish
        self._report = report
        self._interval = interval
        self._known: dict[str, _Known] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorry-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Ask the thread to end, after the adapter it is at, and wait; False if it still runs."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(self._interval)

    def poll(self) -> None:
        """Look once, and publish what is complete since the look before."""
        try:
            with os.scandir(self._folder) as entries:
                folders = {entry.name: entry for entry in entries}
        except OSError as error:
            self._tell("", "failed", f"cannot look into {self._folder}: {error.strerror or error}")
            return
        self._told.pop("", None)
        for gone in (self._known.keys() | self._told.keys()) - folders.keys():
            self._known.pop(gone, None)
            self._told.pop(gone, None)
        for name in sorted(folders):
            if self._stop.is_set():
                return
            if not UNFINISHED.search(name):
                try:
                    self._look_at(name, folders[name])
                except Exception as error:  # noqa: BLE001 - one odd folder must not end the watch
                    self._tell(name, "failed", f"cannot be looked at: {error}")

    def _look_at(self, name: str, entry: "os.DirEntry[str]") -> None:
        if entry.is_symlink():
            self._tell(name, "refused", "is a symbolic link, which is never followed")
            return
        if not entry.is_dir(follow_symlinks=False) or (self._folder / name / IGNORE).exists():
            return
        signature = _sign(self._folder / name)
        known = self._known.get(name)
        if known is None or known.signature != signature:
            self._known[name] = _Known(signature)
            if known is not None:
                self._tell(name, "waiting", "is being written")
        elif known.settled:
            return
        elif missing := _missing(signature):
            self._tell(name, "waiting", f"{missing} is not there yet")
        else:
            self._offer(name, known)

    def _offer(self, name: str, known: _Known) -> None:
        try:
            version = self._publish(self._folder / name, name)
        except AdapterError as error:
            known.settled = not isinstance(error, PASSING)
            status: Literal["refused", "failed"] = "refused" if known.settled else "failed"
            self._tell(name, status, str(error), error=error)
        else:
            known.settled = True
            self._tell(name, "published", version.label, version=version)

    def _tell(
        self,
        name: str,
        status: Literal["published", "waiting", "refused", "failed"],
        message: str,
        version: AdapterVersion | None = None,
        error: AdapterError | None = None,
    ) -> None:
        if self._told.get(name) != (status, message):
            self._told[name] = (status, message)
            self._report(Sighting(name, status, message, version, error))


def _sign(folder: Path) -> Signature:
    """The adapter's files as they are now: enough to see that one is still being written."""
    found = []
    for name in FILES:
        try:
            status = (folder / name).lstat()
        except OSError:
            continue
        found.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def _missing(signature: Signature) -> str | None:
    there = {name for name, *_ in signature}
    if CONFIG not in there:
        return CONFIG
    # A pickle instead of the weights is no reason to wait: it is refused.
    return None if there.intersection((WEIGHTS, *PICKLES)) else WEIGHTS
