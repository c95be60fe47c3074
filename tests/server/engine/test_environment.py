"""The variables that vLLM reads, as the settings want them."""

from __future__ import annotations

import pytest

from server.engine.environment import prepare
from server.settings import Settings


@pytest.mark.parametrize(("backend", "strict"), [("guidance", "0"), ("xgrammar", None)])
def test_forced_tool_calls_are_written_for_the_backend(backend, strict):
    environ: dict[str, str] = {}
    prepare(Settings(model="base", grammar_backend=backend), environ)
    assert environ.get("VLLM_ENFORCE_STRICT_TOOL_CALLING") == strict
