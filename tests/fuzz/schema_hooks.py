"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): judges its answers as ours and keeps its cases.

Changes of adapters hit `bait`, not those whose answers are known.
"""

from __future__ import annotations

import json
import os
import time
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import schemathesis

from tests.fuzz.case import Case, Step
from tests.fuzz.judge import faults_of_answer

BAIT = "bait"
_KEPT = ("orders-json", "orders-sql", "support-tone")
_JOURNAL = Path(os.environ["LORRY_FUZZ_JOURNAL"]) if "LORRY_FUZZ_JOURNAL" in os.environ else None
_numbers = count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    for key in ("name", "reference"):
        value = (case.path_parameters or {}).get(key)
        if isinstance(value, str) and (value.startswith(_KEPT) or len(value) % 2):
            case.path_parameters[key] = BAIT
    if isinstance(case.body, dict) and str(case.body.get("lora_name", "")).startswith(_KEPT):
        case.body["lora_name"] = BAIT


@schemathesis.check
def lorry_answer(ctx: Any, response: Any, case: Any) -> None:
    headers = {name.lower(): values[0] for name, values in response.headers.items()}
    found = faults_of_answer(response.status_code, headers, response.content)
    if _JOURNAL is None:
        return
    ended = time.monotonic()
    kept = Case(
        int(os.environ["LORRY_FUZZ_SEED"]),
        os.environ["LORRY_FUZZ_KIND"],
        next(_numbers),
        f"{case.method} {case.path}",
        (Step("send", _as_sent(response.request)), Step("answers", amount=1)),
    )
    line = {
        "began": ended - response.elapsed,
        "ended": ended,
        "status": response.status_code,
        "faults": found,
        "case": json.loads(kept.to_json()) if found or response.elapsed > 0.2 else None,
        "name": kept.name,
        "title": kept.title,
    }
    with _JOURNAL.open("a") as out:
        out.write(json.dumps(line) + "\n")


def _as_sent(request: Any) -> bytes:
    address = urlsplit(request.url)
    target = address.path + (f"?{address.query}" if address.query else "")
    body = request.body or b""
    if isinstance(body, str):
        body = body.encode()
    fields = {"host": "fuzz"} | dict(request.headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"{request.method} {target} HTTP/1.1\r\n{lines}\r\n"
    return head.encode("latin-1", "replace") + body
