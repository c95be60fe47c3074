"""`--watch DIR`: publishes what is dropped into a folder while the server runs, and says so.

The looking is adapters/watch.py's, in a thread of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.watch import Sighting, Watcher
from server.admin.publishing import Publisher

logger = logging.getLogger("lorry.watch")

_STOP_SECONDS = 10.0


@contextmanager
def watching(folder: Path | None, publisher: Publisher) -> Iterator[None]:
    """Watch `folder`, if there is one, for the length of the block."""
    if folder is None:
        yield
        return
    watcher = Watcher(folder, publisher.publish_watched, _report)
    watcher.start()
    try:
        yield
    finally:
        if not watcher.stop(_STOP_SECONDS):
            logger.warning("an adapter was still being published; the store is as before it")


def _report(sighting: Sighting) -> None:
    is_good = sighting.status in ("published", "waiting")
    level = logging.INFO if is_good else logging.WARNING
    logger.log(level, "%s %s: %s", sighting.name, sighting.status, sighting.message)
