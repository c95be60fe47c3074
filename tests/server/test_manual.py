"""docs/configuration.md is what the code generates, and every setting is an option."""

from __future__ import annotations

import typer
from server_process import ROOT

from server import manual
from server.cli import app
from server.settings import Settings


def test_the_page_is_current():
    assert (ROOT / "docs" / "configuration.md").read_text() == manual.render(), "run `make docs`"


def test_every_setting_except_the_token_is_an_option_with_its_description():
    options = {param.name: param for param in typer.main.get_command(app).params}
    assert options.keys() - {"engine_flags", "config", "help"} == {
        *Settings.model_fields.keys() - {"admin_token"}
    }
    for name, field in Settings.model_fields.items():
        if name not in ("model", "admin_token"):
            assert options[name].help.startswith(field.description)
