"""The sources of settings, and the errors for invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import SettingsInvalid
from server.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LORRY_{name.upper()}", raising=False)


def test_the_command_line_wins_over_variables_and_they_win_over_the_file(monkeypatch):
    Path("lorry.toml").write_text('model = "from-file"\nport = 1\nmax_loras = 3\nhost = "::1"\n')
    monkeypatch.setenv("LORRY_PORT", "2")
    monkeypatch.setenv("LORRY_MAX_LORAS", "4")
    settings = load_settings(max_loras=5, port=None)

    assert (settings.model, settings.host) == ("from-file", "::1")
    assert (settings.port, settings.max_loras) == (2, 5)


def test_every_problem_is_named_at_once():
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(port=99_999, quantization="int3", typo=1)
    for word in ("port = 99999", "quantization", "no such key 'typo'", "no model given"):
        assert word in str(refused.value)


def test_an_unknown_variable_is_an_error(monkeypatch):
    monkeypatch.setenv("LORRY_PROT", "1")
    with pytest.raises(SettingsInvalid, match="LORRY_PROT"):
        load_settings(model="x")


def test_a_server_may_inherit_the_variables_of_the_commands(monkeypatch):
    monkeypatch.setenv("LORRY_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("LORRY_API_KEY", "lk-x")
    assert load_settings(model="x").model == "x"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"require_keys": True, "insecure_no_auth": True}, "exclude each other"),
        ({"ssl_keyfile": "key.pem"}, "needs ssl_certfile"),
    ],
)
def test_settings_of_keys_and_tls_that_contradict_each_other_are_refused(given, words):
    with pytest.raises(SettingsInvalid, match=words):
        load_settings(model="x", **given)


def test_an_unknown_key_in_the_file_is_an_error():
    Path("other.toml").write_text("prot = 1\n")
    with pytest.raises(SettingsInvalid, match="'prot'"):
        load_settings(Path("other.toml"), model="x")


@pytest.mark.parametrize("content", [None, b"port = ", b"\xff\xff"])
def test_a_missing_or_invalid_file_is_named(content):
    if content is not None:
        Path("given.toml").write_bytes(content)
    with pytest.raises(SettingsInvalid, match=r"given\.toml"):
        load_settings(Path("given.toml"), model="x")


def test_max_cpu_loras_below_max_loras_is_refused():
    with pytest.raises(SettingsInvalid, match="at least max_loras"):
        load_settings(model="x", max_loras=9, max_cpu_loras=8)


def test_the_base_has_its_folders_name_by_default(tmp_path):
    assert load_settings(model=tmp_path / "llama").base_name == "llama"
    assert load_settings(model=tmp_path, served_model_name="x/y").base_name == "x/y"


def test_a_model_of_the_hub_has_its_id_for_a_name_without_the_revision():
    for text in ("acme/tiny", "acme/tiny@v1", "hf://acme/tiny"):
        assert load_settings(model=text).base_name == "acme/tiny"
    Path("acme/tiny").mkdir(parents=True)
    assert load_settings(model="acme/tiny").base_name == "tiny"


def test_the_dots_of_a_path_are_kept_so_that_it_is_no_id():
    assert load_settings(model="./acme/tiny").model == "./acme/tiny"


def test_a_base_name_that_would_make_references_ambiguous_is_refused():
    for name in ("a b", "@x", "é", "a:b", "a@1", "x" * 129):
        for given in ({"model": "x", "served_model_name": name}, {"model": name}):
            with pytest.raises(SettingsInvalid, match="--served-model-name"):
                load_settings(**given)


def test_every_setting_has_a_description():
    assert all(field.description for field in Settings.model_fields.values())


def test_the_sum_of_bodies_holds_one_body_at_least():
    with pytest.raises(SettingsInvalid, match="max_bodies_bytes"):
        load_settings(model="m", max_body_bytes=5000, max_bodies_bytes=4999)


def test_an_origin_is_written_as_a_browser_sends_it():
    origins = ["*", "https://a.example", "http://localhost:3000", "chrome-extension://abc"]
    assert load_settings(model="m", cors_origins=origins).cors_origins == tuple(origins)
    for wrong in ("a.example", "https://a.example/", "https://a.example/x", "", "https://"):
        with pytest.raises(SettingsInvalid, match="cors_origins"):
            load_settings(model="m", cors_origins=[wrong])
