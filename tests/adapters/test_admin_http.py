"""What `--url` and the token may be, and that any answer of any server ends in one clear line."""

import socket

import pytest
from online_calls import Stranger, call
from running_server import serving
from standin_server import TOKEN

pytestmark = pytest.mark.usefixtures("token_in_environment")


def test_a_token_that_cannot_be_one_is_not_sent(monkeypatch) -> None:
    for token in ("", "two words and more", "with\nline-and-more", "t\u00f6ken-of-sixteen"):
        monkeypatch.setenv("LORRY_ADMIN_TOKEN", token)
        refused = call("list", "--url", "http://127.0.0.1:1")
        assert (token, refused.exit_code) == (token, 2)
        assert refused.stderr.endswith("(admin_token_missing)\n")
        assert not token or token not in refused.stderr
    missing = call("list", "--url", "http://127.0.0.1:1", "--admin-token-file", "nowhere")
    assert missing.stderr.endswith("(admin_token_missing)\n")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://localhost",
        "file:///etc/passwd",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://[::1",
        "http://ho st",
        "http://host/\r\nx: y",
        "http://ann:secret@host",
        "http://host/?secret",
        "http://host/#secret",
    ],
)
def test_an_invalid_server_address_is_refused(url: str) -> None:
    refused = call("list", "--url", url)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.endswith("(bad_server_address)\n")
    assert "ann:secret" not in refused.stderr


def test_a_server_that_is_not_there_is_one_clear_line(adapter) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for words in (["list"], ["pin", "orders@1"], ["publish", adapter(1), "--name", "orders"]):
            refused = call(*words, "--url", url)
            assert (refused.exit_code, refused.stdout) == (1, "")
            assert refused.stderr.endswith("(server_unreachable)\n")
            assert refused.stderr.count("\n") == 1
            assert url in refused.stderr
    for host in ("a..b", "a" * 70):
        assert call("list", "--url", f"http://{host}").stderr.endswith("(server_unreachable)\n")


@pytest.mark.parametrize(
    ("status", "body", "exit_code", "code"),
    [
        (200, b"<html>", 1, "answer_unclear"),
        (200, b"", 1, "answer_unclear"),
        (200, b"\xff\xfe", 1, "answer_unclear"),
        (200, b'{"data": [{"name": "x"}]}', 1, "answer_unclear"),
        (200, b'{"data": ' + b"[" * 100_000, 1, "answer_unclear"),
        (404, b"not found", 1, "answer_unclear"),
        (404, b'{"error": "odd"}', 1, "answer_unclear"),
        (500, b"oops", 1, "answer_unclear"),
        (403, b"<html>", 2, "server_refused"),
        (503, b'{"error": {"message": "starting", "code": "unavailable"}}', 1, "unavailable"),
        (400, b'{"error": {"message": "\\u001b[31m\\nred", "code": "odd"}}', 2, "odd"),
    ],
)
def test_any_answer_ends_in_one_clear_line(
    status: int, body: bytes, exit_code: int, code: str
) -> None:
    with serving(Stranger(status, body)) as url:
        refused = call("list", "--url", url)
    assert (refused.exit_code, refused.stdout) == (exit_code, "")
    assert refused.stderr.endswith(f"({code})\n")
    assert refused.stderr.count("\n") == 1
    assert "\x1b" not in refused.stderr


def test_a_redirect_is_not_followed_with_the_token() -> None:
    other, stranger = Stranger(200, b'{"data": []}'), Stranger(301, b"")
    with serving(other) as elsewhere, serving(stranger) as url:
        stranger.headers = [(b"location", elsewhere.encode())]
        for stranger.status in (301, 302, 303, 307, 308):
            refused = call("list", "--url", url)
            assert (stranger.status, refused.exit_code) == (stranger.status, 1)
            assert refused.stderr.endswith("(answer_unclear)\n")
            assert "redirects" in refused.stderr
    assert (len(stranger.asked), other.asked) == (5, [])


def test_an_address_may_have_a_path_before_the_api(tmp_path) -> None:
    stranger = Stranger(200, b'{"data": []}')
    with serving(stranger) as url:
        assert call("list", "--url", f"{url}/lorry/", "--json").stdout == "[]\n"
    (path, headers), _ = stranger.asked
    assert path == "/lorry/admin/adapters"
    assert headers[b"authorization"] == f"Bearer {TOKEN}".encode()
