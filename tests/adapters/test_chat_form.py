"""An adapter that was trained in another form than the base's is published with a warning."""

import json
import os
import shutil
from pathlib import Path

import pytest
from publishing import publish

from adapters.publish import list_warnings

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
OTHER = "[INST] {{ messages[0].content }} [/INST]"


@pytest.fixture
def chat_base(base_folder: Path, tmp_path: Path) -> Path:
    """A base with a template and the end token <|im_end|>, as links, as in the hub's cache."""
    base = shutil.copytree(base_folder, tmp_path / "tiny-base")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "1").write_text(TEMPLATE + "\n")
    (blobs / "2").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (base / "chat_template.jinja").symlink_to(blobs / "1")
    (base / "tokenizer_config.json").symlink_to(blobs / "2")
    return base


@pytest.fixture
def warned(kit, chat_base, tmp_path):
    """Publishes an adapter with these files beside it; returns the codes of the warnings."""

    def warned(template: str | None = None, base: Path = chat_base, **tokenizer) -> list[str]:
        folder = kit.build().write(tmp_path / "a")
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        version = publish(folder, name="a", store=tmp_path / "store", base=base)
        shutil.rmtree(tmp_path / "store")
        found = (version.provenance or {}).get("publish_warnings", [])
        assert len(list_warnings(version)) == len(found)
        return [warning["code"] for warning in found]

    return warned


def test_the_bases_own_form_is_no_warning(warned) -> None:
    assert warned() == []
    assert warned(TEMPLATE, eos_token="<|im_end|>") == []
    assert warned(chat_template=TEMPLATE, eos_token={"content": "<|im_end|>"}) == []
    several = [{"name": "tools", "template": OTHER}, {"name": "default", "template": TEMPLATE}]
    assert warned(chat_template=several) == []


def test_another_template_or_end_token_is_a_warning(warned) -> None:
    assert warned(OTHER) == ["template_differs"]
    assert warned(chat_template=OTHER) == ["template_differs"]
    assert warned(TEMPLATE, eos_token="</s>") == ["end_token_differs"]
    assert warned(OTHER, eos_token="</s>") == ["template_differs", "end_token_differs"]


def test_a_template_for_a_base_without_one_is_a_warning(warned, base_folder) -> None:
    assert warned(TEMPLATE, base=base_folder, eos_token="</s>") == ["template_differs"]


def test_files_that_say_nothing_are_passed_over(kit, chat_base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    os.mkfifo(folder / "chat_template.jinja")
    (folder / "tokenizer_config.json").symlink_to("/dev/zero")
    assert publish(folder, name="a", store=tmp_path / "store", base=chat_base).provenance is None
    (folder / "tokenizer_config.json").unlink()
    for number, text in enumerate((b"[" * 100_000, b"\xff", b"[]", b'{"eos_token": 7}')):
        (folder / "tokenizer_config.json").write_bytes(text)
        version = publish(folder, name=f"b{number}", store=tmp_path / "store", base=chat_base)
        assert version.provenance is None


def test_warnings_cannot_be_brought_along(kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.extra["lorry.json"] = json.dumps({"publish_warnings": [7], "recipe": {}}).encode()
    folder = draft.write(tmp_path / "a")
    version = publish(folder, name="a", store=tmp_path / "store", base=base_folder)
    assert version.provenance == {"recipe": {}}
    assert list_warnings(version) == []
