"""Requests to the admin API of one server, with its token, as typed answers or errors.

The token goes to that server alone: no redirect is followed, and a server on this machine is
reached without the environment's proxies.
"""

import ipaddress
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx2
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

T = TypeVar("T")

QUICK_SECONDS = 30.0
MAX_ANSWER_BYTES = 64 << 20
SHOWN_ANSWER = 2_000

SET_TOKEN = (
    "set LORRY_ADMIN_TOKEN to the token that the server was started with, or LORRY_API_KEY to a key"
    " of scope admin, or name the file that holds one with --admin-token-file"
)


class _Said(msgspec.Struct):
    message: str
    code: str


class _Envelope(msgspec.Struct):
    error: _Said
    problems: list[Problem] = []


class AdminHttp:
    """Sends requests to one server, with its token.

    Raises BadServerAddress or TokenMissing for an invalid address or token.
    """

    def __init__(self, url: str, token: str) -> None:
        address = _parse_url(url)
        if not token:
            raise TokenMissing("the server's admin token is not given", SET_TOKEN)
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise TokenMissing("the admin token that is given is not a valid one", SET_TOKEN)
        self._url = address.geturl().rstrip("/")
        self._options: dict[str, Any] = {
            # No compression: the size of an unpacked answer would have no bound.
            "headers": {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            "trust_env": not is_loopback(address.hostname or ""),
            "verify": ssl.create_default_context(),  # trusts the system's authorities
        }

    def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        within: float = QUICK_SECONDS,
        **content: Any,
    ) -> T:
        """The server's answer; `content` are httpx2's arguments params, json, data and files.

        Raises ServerUnreachable, AnswerUnclear, ServerRefused, or CheckpointInvalid for an adapter
        that the server refuses.
        """
        status, text = self._send(method, f"{self._url}{path}", within, content)
        if not 200 <= status < 300:
            self._refuse(status, text)
        return self._read(text, answer, status)

    def _send(
        self, method: str, url: str, within: float, content: Mapping[str, Any]
    ) -> tuple[int, bytes]:
        text = bytearray()
        try:
            with (
                httpx2.Client(timeout=within, **self._options) as client,
                client.stream(method, url, **content) as response,
            ):
                for piece in response.iter_raw():
                    text += piece
                    if len(text) > MAX_ANSWER_BYTES:
                        raise AnswerUnclear(
                            f"{self._url} sends an endless answer", "check the address"
                        )
        # ValueError and ImportError come from a proxy's address in the environment.
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:
            raise self._explain_silence(error) from error
        return response.status_code, bytes(text)

    def _explain_silence(self, error: Exception) -> ServerUnreachable:
        if isinstance(error, httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError):
            return ServerUnreachable(
                f"{self._url} ended the connection: {_plain(str(error)) or type(error).__name__}",
                "the server's log may say why; `max_upload_bytes` bounds an upload",
            )
        is_late = isinstance(error, httpx2.TimeoutException)
        said = "it did not answer in time" if is_late else str(error)
        return ServerUnreachable(
            f"{self._url} cannot be reached: {_plain(said) or type(error).__name__}",
            "check the address, and that the server runs",
        )

    def _read(self, text: bytes, kind: type[T], status: int) -> T:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise AnswerUnclear(
                f"{self._url} answers unlike a server of this version (status {status})",
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
            said = f"{self._url} accepts no request without its token (status {status})"
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
            f"{quote(url.rpartition('@')[2])} is not the address of a server",
            "write http://HOST:PORT or https://HOST",
        )
    if "@" in address.netloc or address.query or address.fragment:
        raise BadServerAddress(
            "a server's address has no user, password, query or fragment", "leave them out"
        )
    return address


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(text: str) -> str:
    """A server's text, made safe for one line of a terminal."""
    shown = text[:SHOWN_ANSWER]
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in shown)
