"""A 404 says what the caller may have meant."""

from __future__ import annotations

import pytest

from server.http.unknown_paths import describe


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/v1/models/", "/v1/models"),
        ("/models", "/v1/models"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
    ],
)
def test_a_wrong_base_url_is_told_the_right_path(path, meant):
    assert f"nothing at {path}. Did you mean {meant}? The base URL" in describe(path)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/v1/embeddings/"])
def test_embeddings_are_said_not_to_be_served(path):
    assert "has no embeddings. Point your client's embeddings at another server" in describe(path)


@pytest.mark.parametrize(
    "path", ["/", "", "/v1", "/v1/", "/v2/models", "/robots.txt", "/" * 10_000]
)
def test_any_other_path_is_told_where_paths_are_listed(path):
    assert describe(path) == (
        f"There is nothing at {path[:128]}. GET /v1/models lists the models, /openapi.json all "
        "paths."
    )
