"""Server-sent events, as far as OpenAI's streams use them: the data of each, whatever the cuts.

https://html.spec.whatwg.org/multipage/server-sent-events.html. Knows nothing of what the data says.
"""

from __future__ import annotations

from collections.abc import Iterator


class Events:
    """Cuts events out of bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""  # a line that has not ended yet
        self._data: list[bytes] = []  # of an event that has not ended yet

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of every event that these bytes complete."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []
