"""HTTP heads of bounded length.

uvicorn's parser on httptools sets no limit to a request line, headers and trailers, and reads them
before any code of ours runs. (Its parser on h11 has a limit, and is slower.)
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class BoundedHeads(HttpToolsProtocol):
    """Answers 400 and closes the connection at MAX_HEAD_BYTES that are no part of a body."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pending = 0  # bytes since the last complete head or piece of a body
        self._was_whole = False

    def data_received(self, data: bytes) -> None:
        self._was_whole = False
        super().data_received(data)
        self._pending = 0 if self._was_whole else self._pending + len(data)
        if self._pending > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_headers_complete(self) -> None:
        self._was_whole = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._was_whole = True
        super().on_body(body)
