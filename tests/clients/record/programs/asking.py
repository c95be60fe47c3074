"""What the Python clients' programs share: run each case, tell what the client made of it.

A program runs in its client's own environment, so this file imports nothing but the standard
library.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

ADAPTER = "orders-json"
BASE = "shop-base"
KEY = "none"  # the server asks for none; clients insist
QUESTION = "two blue lamps to Oslo by Friday"
PREFILL = '{"items": [{"sku"'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "gift": {"type": "boolean"}},
    "required": ["city", "gift"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "ship", "description": "Ships the order.", "parameters": SCHEMA},
}
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
# One red pixel.
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLv"
    "AAAAAElFTkSuQmCC"
)

Case = Callable[[str], dict[str, Any]]


def run(cases: dict[str, Case]) -> None:
    """Runs every case against its own base URL (without `/v1`); a JSON line for each."""
    for name, ask in cases.items():
        try:
            got = ask(f"{os.environ['PROXY']}/{name}")
        except Exception as error:  # noqa: BLE001 - a refusal is a result
            got = {"error": _describe(error)}
        sys.stdout.write(json.dumps({"case": name, "got": got}) + "\n")
        sys.stdout.flush()


def _describe(error: Exception) -> dict[str, Any]:
    """What a program that uses the client can tell of a refusal."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else {}
    return {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None) or inner.get("code"),
        "says": str(inner.get("message") or error)[:300],
    }
