"""Addresses that fsspec reads, SCHEME://...: what one means, what of it may be shown, its files.

Sources of adapters and stores in a bucket have them. The secret parts of an address (user,
password, query) are never shown.
"""

import importlib.util
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

# scheme -> the package, and module, that reads it
BACKENDS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}
ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


class Unsupported(Exception):
    """An address that nothing here reads: what is wrong, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint


class Address(NamedTuple):
    """A text that is no plain path."""

    scheme: str
    text: str

    @property
    def shown(self) -> str:
        return redact(self.text)


def redact(text: str) -> str:
    """An address without its secrets: user, password, query and fragment."""
    parts = urlsplit(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def parse(text: str) -> Address:
    """The address that a text with `://` is; raises Unsupported."""
    if "\0" in unquote(text):
        raise Unsupported("it holds a NUL character", "write SCHEME://PATH")
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    # fsspec chains file systems with "::", which would bypass a list of schemes.
    if "::" in text or not scheme.isalnum():
        raise Unsupported("it is no single address", "write SCHEME://PATH")
    try:
        urlsplit(text)
    except ValueError as error:
        raise Unsupported("it is no address", "write SCHEME://PATH") from error
    return Address(ALIASES.get(scheme, scheme), f"{scheme}://{rest}")


def open_files(address: Address, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of an address, and its path there.

    Raises Unsupported for a scheme without a driver; a driver may raise errors of its own.
    """
    from fsspec.core import url_to_fs

    module = BACKENDS.get(address.scheme)
    if module and importlib.util.find_spec(module) is None:
        raise Unsupported(
            f"reading {address.scheme}:// needs {module}",
            f"install it where Lorry runs: python -m pip install {module}",
        )
    try:
        files, root = url_to_fs(address.text, skip_instance_cache=True, **options)
    except (ValueError, ImportError):
        readable = ", ".join(["file", "hf", *BACKENDS])
        raise Unsupported(
            f"nothing here reads {address.scheme}://",
            f"use one of {readable}, or install the backend that fsspec names for it",
        ) from None
    return files, str(root)
