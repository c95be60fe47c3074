"""Processes that the server starts get no credential of its catalog or its store."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import connection, util
from pathlib import Path

import pytest

from server import children

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3cret1",
    "AZURE_STORAGE_ACCOUNT_KEY": "s3cret2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/s3cret3",
    "FSSPEC_S3_SECRET": "s3cret4",
    "LORRY_CATALOG": "postgresql://lorry:s3cret5@db/lorry",
    "PGPASSWORD": "s3cret6",
}


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(util, "spawnv_passfds", util.spawnv_passfds)  # put back at the end


def test_a_child_gets_the_environment_without_credentials():
    assert children.environment({"PATH": "/bin", **SECRETS}) == {"PATH": "/bin"}
    assert "s3cret" not in str(children.environment())


def describe(sender: connection.Connection) -> None:
    sender.send([dict(os.environ), Path("/proc/self/environ").read_text()])


def test_a_process_that_multiprocessing_spawns_gets_none_either():
    """A process, because what it may know is its whole address space. So vLLM's engine on a GPU."""
    children.withhold()
    receiver, sender = connection.Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=describe, args=(sender,))
    child.start()
    sender.close()
    known, at_start = receiver.recv()
    child.join()
    assert "s3cret" not in f"{known}{at_start}"
    assert known["PATH"] == os.environ["PATH"]
    assert os.environ["PGPASSWORD"] == "s3cret6"
