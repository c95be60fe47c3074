"""Events come out whole, however the bytes are cut."""

from __future__ import annotations

import pytest

from loadtest.drive.sse import Events

STREAM = b': hello\r\n\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\ndata: [DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_how_the_bytes_are_cut(size):
    events = Events()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in events.feed(chunk)] == EVENTS


def test_an_event_that_has_not_ended_does_not_count():
    assert list(Events().feed(b"data: half")) == []
    assert list(Events().feed(b"data: no blank line after it\n")) == []
