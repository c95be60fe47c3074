"""A watched folder's adapters are published while the server runs, and not afterwards."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

from server.admin.publishing import watching


class Publisher:
    def __init__(self):
        self.seen = []
        self.published = threading.Event()

    def publish_watched(self, folder, name):
        self.seen.append((folder.name, name))
        self.published.set()
        return SimpleNamespace(label=f"{name}@1")


def test_a_complete_folder_is_published_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "lorry.watch")
    (tmp_path / "red").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "red" / name).write_text("{}")
    publisher = Publisher()
    with watching(tmp_path, publisher):
        assert publisher.published.wait(60)
    assert publisher.seen == [("red", "red")]
    assert not [thread for thread in threading.enumerate() if thread.name == "lorry-watch"]
    assert "red published" in caplog.text


def test_without_a_folder_no_watcher_runs():
    with watching(None, None):
        assert not [thread for thread in threading.enumerate() if thread.name == "lorry-watch"]
