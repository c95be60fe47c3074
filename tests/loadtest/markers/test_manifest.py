"""Reading markers.json, and errors if it is missing or incomplete."""

from __future__ import annotations

import json

import pytest

from loadtest.errors import OptionsClash, TargetUnfit
from loadtest.markers.manifest import FILE, load_manifest

DOCUMENT = {
    "base": "tiny",
    "digest": "d",
    "adapters": {
        "lt-0001": {"1": {"folder": "lt-0001.v1", "marker": "foo"}},
        "lt-0000": {
            "1": {"folder": "lt-0000.v1", "marker": " bar"},
            "2": {"folder": "lt-0000.v2", "marker": "baz"},
        },
    },
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(DOCUMENT))
    return tmp_path


def test_each_version_has_its_marker_and_folder(folder):
    manifest = load_manifest(folder)
    assert manifest.names == ["lt-0000", "lt-0001"]
    assert manifest.marker("lt-0000", 1) == " bar"
    assert manifest.folder("lt-0000", 2) == folder.resolve() / "lt-0000.v2"


@pytest.mark.parametrize(("name", "version"), [("lt-0001", 2), ("lt-0002", 1)])
def test_an_unknown_version_has_no_marker_and_no_folder(folder, name, version):
    manifest = load_manifest(folder)
    assert manifest.marker(name, version) is None
    assert manifest.folder(name, version) is None


def test_a_missing_adapter_is_named(folder):
    load_manifest(folder).check_has(["lt-0000", "lt-0001"])
    with pytest.raises(TargetUnfit, match="lt-0002"):
        load_manifest(folder).check_has(["lt-0000", "lt-0002"])


def test_a_folder_without_markers_is_refused(tmp_path):
    with pytest.raises(OptionsClash, match="No such file"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"base": "tiny"}', '{"base": 1, "adapters": {}}'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(OptionsClash, match="not a file of markers"):
        load_manifest(tmp_path)
