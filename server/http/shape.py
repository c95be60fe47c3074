"""Bounds on the shape of a request's body, counted before anything parses it.

A parser makes a Python object of each value, and validation visits each object: a body of 10 MB
with 300,000 messages would keep the event loop for seconds, though nothing could answer it. Only
methods of `bytes` run here: they take tens of milliseconds for 15 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import RequestTooLarge

_MEMBERS_PER_OBJECT = 4  # on average


@dataclass(frozen=True, slots=True)
class Shape:
    """`objects`: objects and lists; `values`: all values. They are settings, `max_body_...`."""

    objects: int
    values: int

    def check(self, body: bytes) -> None:
        """Raises RequestTooLarge: the JSON in `body` has more objects, members or values."""
        # The characters in texts are counted too: most bodies are far below the bounds even so.
        if self._excess(body):
            excess = self._excess(self._without_strings(body))
            if excess:
                raise RequestTooLarge(f"The request body has more than {excess}.")

    def _excess(self, text: bytes) -> str:
        objects = text.count(b"{") + text.count(b"[")
        if objects > self.objects:
            return f"{self.objects} objects and lists (the setting max_body_objects)"
        if text.count(b":") > (most := self.objects * _MEMBERS_PER_OBJECT):
            return f"{most} members of objects (four times the setting max_body_objects)"
        if objects + text.count(b",") > self.values:
            return f"{self.values} values (the setting max_body_values)"
        return ""

    def _without_strings(self, body: bytes) -> bytes:
        # Escaped backslashes first: what is left of a run of them escapes the next character.
        text = body.replace(rb"\\", b"").replace(rb"\"", b"")
        strings = text.count(b'"') // 2
        if strings > self.values + self.objects * _MEMBERS_PER_OBJECT:  # each is a value or a key
            return b"," * (self.values + 1)
        return b"".join(text.split(b'"')[::2])
