"""The log on standard error: one JSON object a line, or text on a terminal.

A call's line has `"event": "call"` and the fields of server/telemetry/recorder.py; any other has
`"event": "log"` and a message. No line contains prompts, answers or credentials.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

_calls = logging.getLogger("lorry.calls")

_SUPPRESS_SECONDS = 60.0


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        call = getattr(record, "call", None)
        if call is not None:
            line |= {"event": "call"} | call
        else:
            line |= {"event": "log", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`12:34:56 orders-json@1 chat 200 ok  12+34 tokens  first 0.05 s  all 0.61 s  trace ...`"""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        call = getattr(record, "call", None)
        if call is not None:
            return f"{clock} {_describe(call)}"
        # A message may contain a caller's text, which must not move the cursor.
        message = "".join(c if c.isprintable() else " " for c in record.getMessage())
        text = f"{clock} {record.levelname.lower()}: {message}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _describe(call: dict[str, Any]) -> str:
    adapter = f"{call['adapter']}@{call['version']}" if call["version"] else call["adapter"]
    first = call["ttft_seconds"]
    parts = [
        f"{adapter} {call['endpoint']} {call['status'] or '-'} {call['outcome']}",
        str(call["error_code"] or ""),
        f"{call['prompt_tokens']}+{call['generation_tokens']} tokens",
        f"first {first:.2f} s" if first is not None else "",
        f"all {call['duration_seconds']:.2f} s",
        "cold" if call["cold_start"] else "",
        f"trace {call['trace_id']}",
    ]
    return "  ".join(part for part in parts if part)


class OncePerMinute(logging.Filter):
    """Passes one record, suppresses the rest of a minute, and adds their number to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0
        self._suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() < self._next:
            self._suppressed += 1
            return False
        if self._suppressed:
            record.msg = f"{record.getMessage()} (earlier messages suppressed: {self._suppressed})"
            record.args = ()
        self._next, self._suppressed = time.monotonic() + _SUPPRESS_SECONDS, 0
        return True


def configure_logging(form: str = "auto", stream: TextIO = sys.stderr) -> None:
    """Send the loggers of `lorry`, `uvicorn` and OpenTelemetry to `stream`.

    vLLM's own keep their handler. `form` is json, text, or auto: text on a terminal.
    """
    is_text = form == "text" or (form == "auto" and stream.isatty())
    formatter = TextFormatter() if is_text else JsonFormatter()
    for name, level in (
        ("lorry", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("opentelemetry", logging.WARNING),
    ):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        if name == "opentelemetry":  # repeats itself while a collector is unreachable
            handler.addFilter(OncePerMinute())
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False

    # An error there can repeat with every token.
    logging.getLogger("lorry.engine.outputs").filters[:] = [OncePerMinute()]


def write_call(record: dict[str, Any]) -> None:
    """Write the log line of a call that has ended."""
    _calls.info("call", extra={"call": record})
