"""Watches a folder: publishes a sub-folder NAME as the adapter NAME once it is complete.

A sub-folder is complete when its config and weights are there and did not change between two
polls. One that is incomplete or refused is reported once, left in place, and looked at again when
its files change. The watcher deletes nothing, follows no link and keeps no state on disk: bytes
that a name already has are no new version, so a restart is harmless. It knows nothing of stores;
its `publish` must leave bytes alone that the name already has (adapters.publish with `if_new`).
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
from adapters.store.files import CONFIG, FORM, MLX, PICKLES, PROVENANCE, WEIGHTS

IGNORE = ".lorry-ignore"
# Names that programs give to files that they still write.
UNFINISHED = re.compile(r"^\.|~$|\.(tmp|temp|part|partial|incomplete|crdownload|swp)$", re.I)
FILES = (CONFIG, WEIGHTS, PROVENANCE, *FORM, *MLX, *PICKLES)
# May pass by itself: the disk, the catalog or the base comes back. All else needs other files.
PASSING = (StoreError, CatalogError, BaseUnreadable)

Signature = tuple[tuple[str, int, int, int], ...]
Publish = Callable[[Path, str], AdapterVersion]


@dataclass(frozen=True, slots=True)
class Sighting:
    """News of one sub-folder, or of the watched folder itself (`name` is empty)."""

    name: str
    status: Literal["published", "waiting", "refused", "failed"]
    message: str
    version: AdapterVersion | None = None
    error: AdapterError | None = None


@dataclass(slots=True)
class _Known:
    """A sub-folder at the last poll. `settled`: there is nothing to do until it changes."""

    signature: Signature
    settled: bool = False


class Watcher:
    """Polls `folder` every `interval` seconds and calls `report` once for each piece of news.

    `start` and `stop` run it in a thread of its own; else the caller calls `poll`.
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
        self._reported: dict[str, tuple[str, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorry-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread after the adapter in progress, and wait; False if it still runs."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(self._interval)

    def poll(self) -> None:
        """Look once, and publish the sub-folders that have become complete."""
        try:
            with os.scandir(self._folder) as entries:
                folders = {entry.name: entry for entry in entries}
        except OSError as error:
            self._report_once(
                "", "failed", f"cannot look into {self._folder}: {error.strerror or error}"
            )
            return
        self._reported.pop("", None)
        for gone in (self._known.keys() | self._reported.keys()) - folders.keys():
            self._known.pop(gone, None)
            self._reported.pop(gone, None)
        for name in sorted(folders):
            if self._stop.is_set():
                return
            if not UNFINISHED.search(name):
                try:
                    self._look_at(name, folders[name])
                except Exception as error:  # noqa: BLE001 - one odd folder must not end the watch
                    self._report_once(name, "failed", f"cannot be read: {error}")

    def _look_at(self, name: str, entry: "os.DirEntry[str]") -> None:
        if entry.is_symlink():
            self._report_once(name, "refused", "is a symbolic link, which is never followed")
            return
        if not entry.is_dir(follow_symlinks=False) or (self._folder / name / IGNORE).exists():
            return
        signature = _sign(self._folder / name)
        known = self._known.get(name)
        if known is None or known.signature != signature:
            self._known[name] = _Known(signature)
            if known is not None:
                self._report_once(name, "waiting", "is being written")
        elif known.settled:
            return
        elif missing := _missing(signature):
            self._report_once(name, "waiting", f"{missing} is not there yet")
        else:
            self._offer(name, known)

    def _offer(self, name: str, known: _Known) -> None:
        try:
            version = self._publish(self._folder / name, name)
        except AdapterError as error:
            known.settled = not isinstance(error, PASSING)
            status: Literal["refused", "failed"] = "refused" if known.settled else "failed"
            self._report_once(name, status, str(error), error=error)
        else:
            known.settled = True
            self._report_once(name, "published", version.label, version=version)

    def _report_once(
        self,
        name: str,
        status: Literal["published", "waiting", "refused", "failed"],
        message: str,
        version: AdapterVersion | None = None,
        error: AdapterError | None = None,
    ) -> None:
        if self._reported.get(name) != (status, message):
            self._reported[name] = (status, message)
            self._report(Sighting(name, status, message, version, error))


def _sign(folder: Path) -> Signature:
    """Size, time and inode of the adapter's files: they differ while a file is being written."""
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
    # A pickle in place of the weights is offered too: publishing refuses it with a reason.
    return None if there.intersection((WEIGHTS, *MLX, *PICKLES)) else WEIGHTS
