"""The log on standard error: one JSON object a line, or text on a terminal.

A call's line has `"event": "call"` and the fields of server/telemetry/recorder.py; any other has
`"event": "log"` and a message. No line contains prompts, answers or credentials.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

_calls = logging.getLogger("lorry.calls")

FORMAT_VARIABLE = "LORRY_LOG_FORMAT"  # a setting, which the engine's process inherits resolved
_LEVELS = {
    "lorry": logging.INFO,
    "server": logging.WARNING,  # the kernels, in the engine's process
    "uvicorn": logging.WARNING,
    "opentelemetry": logging.WARNING,
    # At each start it recommends a package that would download kernels; ours replace its own.
    "bitsandbytes": logging.ERROR,
}
_MINUTE = 60.0
_LINES_A_MINUTE = 20  # from one place in the code, besides the lines of calls
# These repeat themselves: with every token, or while a collector is unreachable.
_ONE_LINE_A_MINUTE = ("opentelemetry", "lorry.engine.outputs")


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
            line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # In ASCII: callers' texts may hold other line separators, and halves of surrogate pairs.
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """`12:34:56 orders-json@1 chat 200 ok  12+34 tokens  first 0.05 s  all 0.61 s  trace ...`"""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        call = getattr(record, "call", None)
        if call is not None:
            return f"{clock} {_describe(call)}"
        text = f"{clock} {record.levelname.lower()}: {_printable(record.getMessage())}"
        if not record.exc_info:
            return text
        return "\n".join(
            [text, *map(_printable, self.formatException(record.exc_info).split("\n"))]
        )


def _printable(text: str) -> str:
    """A line that may contain a caller's text, which must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


def _describe(call: dict[str, Any]) -> str:
    adapter = f"{call['adapter']}@{call['version']}" if call["version"] else call["adapter"]
    first = call["ttft_seconds"]
    parts = [
        f"{adapter} {call['endpoint']} {call['status'] or '-'} {call['outcome']}",
        str(call["error_code"] or ""),
        f"key {call['key']}" if call.get("key") else "",
        f"{call['prompt_tokens']}+{call['generation_tokens']} tokens",
        f"first {first:.2f} s" if first is not None else "",
        f"all {call['duration_seconds']:.2f} s",
        "cold" if call["cold_start"] else "",
        f"trace {call['trace_id']}",
    ]
    return "  ".join(part for part in parts if part)


@dataclass
class _Minute:
    """What one place in the code has logged since `began` (monotonic)."""

    began: float = -_MINUTE
    passed: int = 0
    suppressed: int = 0


class RateLimit(logging.Filter):
    """Bounds the lines of each place in the code, and adds how many were suppressed to the next.

    By the place, not by the text, which callers can vary. The lines of calls, of which there is one
    each, always pass, and what an answer hides (`always`).
    """

    def __init__(self, lines: int = _LINES_A_MINUTE, by_place: bool = True) -> None:
        super().__init__()
        self._lines = lines
        self._by_place = by_place
        self._minutes: dict[Any, _Minute] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "call") or getattr(record, "always", False):
            return True
        place: Any = (record.pathname, record.lineno) if self._by_place else record.name
        limit = self._lines
        for name in _ONE_LINE_A_MINUTE:
            if record.name.startswith(name):
                place, limit = name, 1
        minute = self._minutes.setdefault(place, _Minute())
        now = time.monotonic()
        if now >= minute.began + _MINUTE:
            if minute.suppressed:
                count = f"(earlier messages suppressed: {minute.suppressed})"
                record.msg, record.args = f"{record.getMessage()} {count}", ()
            minute.began, minute.passed, minute.suppressed = now, 0, 0
        if minute.passed >= limit:
            minute.suppressed += 1
            return False
        minute.passed += 1
        return True


def choose_format(form: str, stream: TextIO = sys.stderr) -> Literal["json", "text"]:
    """`auto` is text on a terminal."""
    is_text = form == "text" or (form != "json" and stream.isatty())
    return "text" if is_text else "json"


def configure_logging(form: str = "auto", stream: TextIO = sys.stderr) -> None:
    """Send what every logger says to `stream`: ours, vLLM's, and warnings of all others."""
    handler = logging.StreamHandler(stream)
    is_json = choose_format(form, stream) == "json"
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter())
    handler.addFilter(RateLimit())
    logging.getLogger().handlers[:] = [handler]
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))


def start_log(form: str) -> None:
    """Configure the log of `lorry serve`, for the whole process and its children. Idempotent."""
    faulthandler.enable()  # a crash of native code leaves its stack
    os.environ[FORMAT_VARIABLE] = chosen = choose_format(form)
    if "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
        os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # no handler of its own
    if chosen == "text":
        configure_logging(chosen)
        return
    from server.telemetry.collector import capture, is_capturing

    if is_capturing():
        return
    real = capture()
    configure_logging(chosen, real)
    if os.getppid() == 1:
        # An init process ends all others with the server, the collector too: what a crash of
        # native code leaves goes out as it is.
        faulthandler.enable(file=real)
    _log_what_is_unhandled()


def follow_server() -> None:
    """Configure the log of the engine's process as its server's."""
    faulthandler.enable()
    form = os.environ.get(FORMAT_VARIABLE, "text")
    configure_logging(form)
    if form == "json":
        _log_what_is_unhandled()


def _log_what_is_unhandled() -> None:
    def log(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            info = (kind, error or kind(), trace)
            logging.getLogger("lorry").critical("an exception was not handled", exc_info=info)

    sys.excepthook = log
    threading.excepthook = lambda args: log(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: log(args.exc_type, args.exc_value, args.exc_traceback)
    logging.captureWarnings(True)  # asyncio logs what its tasks raise


def write_call(record: dict[str, Any]) -> None:
    """Write the log line of a call that has ended."""
    _calls.info("call", extra={"call": record})
