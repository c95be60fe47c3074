"""One server's admin API over HTTP: sends what is asked, with the token, and says what went wrong.

The token goes to that server alone: a redirect is not followed, and what is on this machine is
asked past any proxy of the environment. Knows nothing of what the paths mean.
"""

import ipaddress
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse
from typing import IO, Any, NoReturn, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import msgspec

from adapters.errors import (
    AnswerUnclear,
    BadServerAddress,
    CheckpointInvalid,
    Problem,
    ServerRefused,
    ServerUnreachable,
    TokenMissing,
    quote,
)
from adapters.upload import Content

T = TypeVar("T")

QUICK_SECONDS = 30.0
SLOW_SECONDS = 900.0  # until it answers: a large adapter to judge, or to load behind others
MAX_ANSWER_BYTES = 64 << 20
SHOWN_ANSWER = 2_000

SET_TOKEN = (
    "set LORRY_ADMIN_TOKEN to the token that the server was started with,"
    " or name the file that holds it with --admin-token-file"
)


class _Said(msgspec.Struct):
    message: str
    code: str


class _Envelope(msgspec.Struct):
    error: _Said
    problems: list[Problem] = []


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None  # which makes an HTTPError of it


class AdminHttp:
    """Raises BadServerAddress or TokenMissing where nothing could be asked with these."""

    def __init__(self, url: str, token: str) -> None:
        address = _parse_url(url)
        if not token:
            raise TokenMissing("the server's admin token is not given", SET_TOKEN)
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise TokenMissing("what is given as admin token cannot be one", SET_TOKEN)
        self._url = address.geturl().rstrip("/")
        self._token = token
        is_here = _is_loopback(address.hostname or "")
        self._opener = build_opener(_NoRedirect, *([ProxyHandler({})] if is_here else []))

    def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content: Content | None = None,
        within: float = QUICK_SECONDS,
    ) -> T:
        """What the server answers; `body` is sent as JSON, `content` as it is.

        Raises ServerUnreachable, AnswerUnclear, ServerRefused, or CheckpointInvalid for an adapter
        that the server refuses.
        """
        target = f"{self._url}{path}" + (f"?{urlencode(query)}" if query else "")
        request = Request(target, method=method)
        if body is not None:
            text = msgspec.json.encode(body)
            content = Content("application/json", len(text), [text])
        if content is not None:
            request.data = content.pieces
            request.add_header("Content-Type", content.type)
            request.add_header("Content-Length", str(content.length))
        request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        status, text = self._send(request, within)
        if not 200 <= status < 300:
            self._refuse(status, text)
        return self._read(text, answer, status)

    def _send(self, request: Request, within: float) -> tuple[int, bytes]:
        try:
            with self._open(request, within) as response:
                text = response.read(MAX_ANSWER_BYTES + 1)
        # A ValueError is that of a host's name, or of a proxy's address.
        except (OSError, HTTPException, ValueError) as error:
            raise self._explain_silence(error) from error
        if len(text) > MAX_ANSWER_BYTES:
            raise AnswerUnclear(f"{self._url} answers without an end", "check the address")
        return response.status or 0, text

    def _open(self, request: Request, within: float) -> HTTPResponse | HTTPError:
        try:
            response: HTTPResponse = self._opener.open(request, timeout=within)
        except HTTPError as refusal:
            return refusal
        return response

    def _explain_silence(self, error: Exception) -> ServerUnreachable:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, BrokenPipeError | ConnectionResetError):
            return ServerUnreachable(
                f"{self._url} ended the connection: {_plain(str(reason))}",
                "the server's log may say why; `max_upload_bytes` bounds what it takes",
            )
        said = "it did not answer in time" if isinstance(reason, TimeoutError) else str(reason)
        return ServerUnreachable(
            f"{self._url} cannot be reached: {_plain(said) or type(reason).__name__}",
            "check the address, and that the server runs",
        )

    def _read(self, text: bytes, kind: type[T], status: int) -> T:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise AnswerUnclear(
                f"{self._url} does not answer as this version's server does (status {status})",
                "check the address, and that both sides are of one version",
            ) from error

    def _refuse(self, status: int, text: bytes) -> NoReturn:
        hint = SET_TOKEN if status in (401, 403) else ""
        if 300 <= status < 400:
            raise AnswerUnclear(
                f"{self._url} redirects elsewhere, where the token is not sent",
                "give the address that it redirects to, if that is the server's",
            )
        try:
            envelope = self._read(text, _Envelope, status)
        except AnswerUnclear:
            if not hint:
                raise
            said = f"{self._url} lets nobody in without its token (status {status})"
            raise ServerRefused(said, hint, status=status) from None
        if envelope.problems:
            raise CheckpointInvalid(
                [
                    Problem(*map(_plain, (each.code, each.where, each.message, each.fix)))
                    for each in envelope.problems
                ]
            )
        message, code = _plain(envelope.error.message).rstrip("."), _plain(envelope.error.code)
        raise ServerRefused(message, hint, code=code, status=status)


def _parse_url(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        is_good = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        is_good = False
    if not is_good or not (url.isascii() and url.isprintable()) or " " in url:
        raise BadServerAddress(
            f"{quote(url.rpartition('@')[2])} is no server's address",
            "write http://HOST:PORT or https://HOST",
        )
    if "@" in address.netloc or address.query or address.fragment:
        raise BadServerAddress(
            "a server's address has no user, password, query or fragment", "leave them out"
        )
    return address


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(text: str) -> str:
    """What a server says, safe for one line of a terminal."""
    shown = text[:SHOWN_ANSWER]
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in shown
    )
