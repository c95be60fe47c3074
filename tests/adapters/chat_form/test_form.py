"""An adapter that was trained in another form than its base's is stored with it, or refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
from publishing import publish

from adapters.backup import copy_store
from adapters.chat_form.form import read_form
from adapters.errors import CheckpointInvalid, ObjectDamaged
from adapters.publish import list_notes, list_warnings
from adapters.store import Store
from adapters.store.files import TOKENIZER

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
OTHER = "[INST] {{ messages[0].content }} [/INST]{{ eos_token }}"
VOCABULARY = {"model": {"vocab": {"a": 0, "</s>": 1}}, "added_tokens": [{"content": "<|im_end|>"}]}


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
    (base / "tokenizer.json").write_text(json.dumps(VOCABULARY))
    return base


@pytest.fixture
def published(kit, chat_base, tmp_path):
    """Publishes an adapter with these files beside it; the version and its object's form."""

    def published(template: str | None = None, base: Path = chat_base, **tokenizer):
        folder = kit.build().write(tmp_path / "a")
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        store = Store(tmp_path / "store")
        version = publish(folder, name="a", store=store.root, base=base)
        store.verify(version.digest)
        found = read_form(store.path(version.digest)).form
        shutil.rmtree(store.root)
        return version, found

    return published


def test_the_bases_own_form_is_not_stored(published) -> None:
    plain, _ = published()
    several = [{"name": "tools", "template": OTHER}, {"name": "default", "template": TEMPLATE}]
    for same in (
        published(TEMPLATE, eos_token="<|im_end|>"),
        published(chat_template=TEMPLATE, eos_token={"content": "<|im_end|>"}),
        published(chat_template=several),
        published(TEMPLATE, pad_token="<pad>"),  # no template asks for it
    ):
        version, form = same
        assert (version.digest, version.provenance, form.templates) == (plain.digest, None, {})


def test_another_template_is_stored_and_counts(published) -> None:
    plain, _ = published()
    version, form = published(OTHER, eos_token="<|im_end|>")
    assert version.digest != plain.digest
    assert (form.templates, form.tokens) == ({"default": OTHER}, {"eos_token": "<|im_end|>"})
    assert list_warnings(version) == []
    assert "own chat template" in list_notes(version)[0]
    again, _ = published(chat_template=OTHER, eos_token="<|im_end|>")
    assert again.digest == version.digest
    assert published(OTHER + " ", eos_token="<|im_end|>")[0].digest != version.digest


def test_a_template_for_tools_is_stored_with_the_default_one(published) -> None:
    both = {"tool_use": OTHER, "default": TEMPLATE}
    listed = [{"name": name, "template": text} for name, text in both.items()]
    assert published(chat_template=listed)[1].templates == both


def test_a_default_template_alone_is_the_bases_that_has_one_for_tools_too(
    published, chat_base
) -> None:
    both = {"tool_use": OTHER, "default": TEMPLATE}
    listed = [{"name": name, "template": text} for name, text in both.items()]
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (chat_base / name).unlink()
    (chat_base / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert published(TEMPLATE)[0].provenance is None
    assert published(OTHER)[1].templates == {"default": OTHER}


def test_another_end_token_is_stored_if_the_base_has_it(published) -> None:
    version, form = published(TEMPLATE, eos_token="</s>")
    assert (form.templates, form.end) == ({}, "</s>")
    assert "end_token" in version.provenance["chat_form"]
    assert list_warnings(version) == []
    version, form = published(TEMPLATE, eos_token="<other>")
    assert form.end is None
    assert [each["code"] for each in version.provenance["publish_warnings"]] == [
        "end_token_differs"
    ]


def test_a_special_token_that_the_bases_template_uses_makes_another_form(
    published, chat_base
) -> None:
    (chat_base / "chat_template.jinja").unlink()
    (chat_base / "chat_template.jinja").write_text("{{ bos_token }}" + TEMPLATE)
    _, form = published(bos_token="<s>", eos_token="<|im_end|>")
    assert form.tokens == {"bos_token": "<s>"}
    assert form.templates == {"default": "{{ bos_token }}" + TEMPLATE}


def test_a_template_for_a_base_without_one_is_stored(published, base_folder) -> None:
    assert published(TEMPLATE, base=base_folder)[1].templates == {"default": TEMPLATE}


def test_an_object_is_published_again_with_its_form(published, kit, chat_base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "b")
    (folder / "chat_template.jinja").write_text(OTHER)
    first = publish(folder, name="a", store=tmp_path / "store", base=chat_base)
    source = Store(tmp_path / "store").path(first.digest)
    again = publish(source, name="b", store=tmp_path / "other", base=chat_base)
    assert again.digest == first.digest


def test_a_backup_has_the_form(kit, chat_base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "b")
    (folder / "chat_template.jinja").write_text(OTHER)
    version = publish(folder, name="a", store=tmp_path / "store", base=chat_base)
    done = copy_store(tmp_path / "store", tmp_path / "copy")
    assert done.objects == (version.digest,)
    copy = Store(tmp_path / "copy")
    copy.verify(version.digest)
    assert read_form(copy.path(version.digest)).form.templates == {"default": OTHER}


def test_a_changed_form_is_damage(kit, chat_base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "b")
    (folder / "chat_template.jinja").write_text(OTHER)
    version = publish(folder, name="a", store=tmp_path / "store", base=chat_base)
    store = Store(tmp_path / "store")
    path = store.path(version.digest) / TOKENIZER
    path.chmod(0o644)
    path.write_text(path.read_text().replace("INST", "inst"))
    with pytest.raises(ObjectDamaged, match="not those that were published"):
        store.verify(version.digest)


@pytest.mark.parametrize(
    ("code", "template", "tokenizer"),
    [
        ("template_unusable", "{% for", {}),
        ("template_unusable", "{{ messages[0].content * 10**10 }}", {}),
        (
            "template_unusable",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            {},
        ),
        ("template_too_large", "x" * 300_000, {}),
        (
            "template_tokens_unknown",
            "<|new|>{{ messages[0].content }}",
            {"added_tokens_decoder": {"32": {"content": "<|new|>"}}},
        ),
    ],
)
def test_a_form_that_no_server_can_use_is_refused(published, code, template, tokenizer) -> None:
    with pytest.raises(CheckpointInvalid) as caught:
        published(template, **tokenizer)
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_template_that_refuses_a_user_message_is_doubted(published) -> None:
    version, form = published("{{ raise_exception('no system message') }}")
    (warning,) = version.provenance["publish_warnings"]
    assert (warning["code"], form.templates != {}) == ("template_refuses", True)
    assert "no system message" in warning["message"]


def test_form_files_that_cannot_be_read_are_refused(kit, chat_base, tmp_path) -> None:
    def codes(folder: Path) -> list[str]:
        with pytest.raises(CheckpointInvalid) as caught:
            publish(folder, name="a", store=tmp_path / "store", base=chat_base)
        return [problem.code for problem in caught.value.problems]

    folder = kit.build().write(tmp_path / "a")
    os.mkfifo(folder / "chat_template.jinja")
    (folder / "tokenizer_config.json").symlink_to("/dev/zero")
    assert codes(folder) == ["form_unreadable"] * 2
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").unlink()
    for text in (b"[" * 100_000, b"\xff", b"[]"):
        (folder / "tokenizer_config.json").write_bytes(text)
        assert codes(folder) == ["form_unreadable"]
    (folder / "tokenizer_config.json").write_bytes(b'{"eos_token": 7, "chat_template": {}}')
    version = publish(folder, name="a", store=tmp_path / "store", base=chat_base)
    assert version.provenance is None


def test_what_publishing_says_cannot_be_brought_along(kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    brought = {"publish_warnings": [7], "chat_form": {"sha256": "0"}, "recipe": {}}
    draft.extra["lorry.json"] = json.dumps(brought).encode()
    folder = draft.write(tmp_path / "a")
    version = publish(folder, name="a", store=tmp_path / "store", base=base_folder)
    assert version.provenance == {"recipe": {}}
    assert list_warnings(version) == []
