"""The part of Lorry's admin API that actions use (docs/adapters-server.md).

A refused change is a result, like a failed call.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from loadtest.drive.fetch import read_body
from loadtest.errors import TargetUnfit

SECONDS = 120.0
_MAX_BYTES = 16 * 1024 * 1024
_SHOWN = 300  # characters of a server's message


class Target(msgspec.Struct):
    version: int


class Alias(msgspec.Struct):
    """An alias and its versions: several during a split."""

    targets: list[Target]


class Adapter(msgspec.Struct):
    versions: list[Target]


Result = TypeVar("Result")


class Answer(msgspec.Struct, Generic[Result]):
    """Either a `result` or a `failure`; if that is `unclear`, the change may have been made."""

    result: Result | None = None
    failure: str = ""
    unclear: bool = False


class Admin:
    def __init__(
        self, session: aiohttp.ClientSession, url: str, token: str, seconds: float = SECONDS
    ) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/admin/adapters"
        self._headers = {"authorization": f"Bearer {token}"}
        self._timeout = aiohttp.ClientTimeout(total=seconds)

    async def show(self, name: str) -> Answer[Adapter]:
        return await self._request(Adapter, "GET", f"/{_path(name)}")

    async def publish(self, name: str, folder: Path) -> Answer[Target]:
        """Upload a folder's files as the next version, without moving an alias."""
        try:
            files = await asyncio.to_thread(_read_files, folder)
        except OSError as error:
            return Answer(failure=f"{folder} can't be read: {error.strerror or error}")
        form = aiohttp.FormData({"name": name, "alias": ""})
        for file_name, content in files.items():
            form.add_field("file", content, filename=file_name)
        return await self._request(Target, "POST", "", data=form)

    async def point(self, name: str, alias: str, version: int) -> Answer[Alias]:
        path = f"/{_path(name)}/aliases/{_path(alias)}"
        return await self._request(Alias, "PUT", path, json={"version": version})

    async def roll_back(self, name: str, alias: str) -> Answer[Alias]:
        return await self._request(Alias, "POST", f"/{_path(name)}/aliases/{_path(alias)}/rollback")

    async def pin(self, name: str, version: int) -> Answer[Target]:
        return await self._request(Target, "POST", f"/{_path(name)}/versions/{version}/pin")

    async def unpin(self, name: str, version: int) -> Answer[Target]:
        return await self._request(Target, "DELETE", f"/{_path(name)}/versions/{version}/pin")

    async def _request(
        self, kind: type[Result], method: str, path: str, **body: Any
    ) -> Answer[Result]:
        try:
            async with self._session.request(
                method,
                self._url + path,
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,  # the token must not reach another server
                **body,
            ) as response:
                content = await read_body(response, _MAX_BYTES)
                return _read_answer(kind, response.status, content)
        except TimeoutError:
            return Answer(failure=f"no answer within {self._timeout.total:g} s", unclear=True)
        except (aiohttp.ClientError, TargetUnfit) as error:
            return Answer(failure=f"no answer: {error or type(error).__name__}", unclear=True)


def _read_files(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: path.read_bytes() for path in files if not path.name.startswith(".")}


def _path(part: str) -> str:
    return quote(part, safe="")


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Envelope(msgspec.Struct):
    error: _Error


def _read_answer(kind: type[Result], status: int, content: bytes) -> Answer[Result]:
    try:
        if 200 <= status < 300:
            return Answer(result=msgspec.json.decode(content, type=kind))
        error = msgspec.json.decode(content, type=_Envelope).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Answer(failure=f"{status}, and the answer is not Lorry's", unclear=True)
    failure = f"{status} {error.code or ''}: {error.message[:_SHOWN]}"
    return Answer(failure=failure, unclear=status >= 500)
