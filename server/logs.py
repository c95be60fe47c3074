"""The log: one JSON object a line on standard error.

A call's line has `"event": "call"` and the fields of server/attribution.py; anything else has
`"event": "log"` and a message. Prompts, answers and credentials are never among them.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_calls = logging.getLogger("lorry.calls")


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


def configure_logging(stream: TextIO = sys.stderr) -> None:
    """Send the `lorry` and `uvicorn` loggers to `stream`; vLLM's own keep their handler."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name, level in (("lorry", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def write_call(record: dict[str, Any]) -> None:
    _calls.info("call", extra={"call": record})
