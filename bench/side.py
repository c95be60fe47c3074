"""One side as a process: `python -m bench.side`, started by bench/sides.py.

It reads one JSON document a line: first the spec, then workloads. It answers each with a line on
the standard output that the process started with; all other output goes to standard error. An
exception is the last answer and ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from bench.model import Home
from bench.spec import Outcome, SideSpec
from bench.workload import Request, Workload
from server.engine import environment
from server.settings import Settings

_STOCK_PLUGINS = "bitsandbytes"


class Engine(Protocol):
    def run(self, requests: Sequence[Request], output_tokens: int, rivals: bool) -> Outcome:
        """Answer all requests, sent at once, greedily and at full length."""

    def close(self) -> None: ...


def main(open_: Callable[[SideSpec, Home], Engine]) -> None:
    with claim_stdout() as answers:
        try:
            serve(sys.stdin, answers, open_)
        except Exception as error:
            traceback.print_exc()
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})
            raise SystemExit(1) from error


def claim_stdout() -> TextIO:
    """Reserve standard output for the answers; later writes to it go to standard error."""
    own = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(own, "w")


def serve(
    orders: Iterable[str], answers: TextIO, open_: Callable[[SideSpec, Home], Engine]
) -> None:
    """Build the engine that the first line specifies, then answer until the input ends."""
    lines = iter(orders)
    first = json.loads(next(lines))
    home = Home(**{key: _as_path(key, value) for key, value in first["home"].items()})
    engine = open_(SideSpec(**first["spec"]), home)
    _answer(answers, {"ready": True})
    try:
        for line in lines:
            _answer(answers, asdict(_run(engine, home, json.loads(line))))
    finally:
        engine.close()


def open_engine(spec: SideSpec, home: Home) -> Engine:
    prepare_environment(spec, home)
    from bench.side_vllm import VllmEngine

    return VllmEngine(spec, home)


def prepare_environment(
    spec: SideSpec, home: Home, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Set this process up for `spec`, before anything heavy is imported.

    The settings are the server's own. The caller's shell does not reach a side
    (loadtest.servers.environment.cleaned): it would change what "stock" and "ours" mean.
    """
    # No effect on speed: a folder to write to, and silence.
    environ["VLLM_CACHE_ROOT"] = str(home.cache)
    environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    environ["VLLM_NO_USAGE_STATS"] = "1"
    environ["HF_HUB_OFFLINE"] = "1"
    if spec.kind != "stock":
        environment.prepare(Settings(model=str(home.base)), environ)
    if spec.kind != "lorry":
        environ["VLLM_PLUGINS"] = _STOCK_PLUGINS
    if spec.kind != "lorry" or not spec.max_loras:
        environ.pop("VLLM_COMPUTE_NANS_IN_LOGITS", None)  # costs without our kernels


def _run(engine: Engine, home: Home, order: dict[str, Any]) -> Outcome:
    workload = Workload.from_json(order["workload"])
    requests = workload.requests(home.vocabulary, order["seed"])
    if order["only"] is not None:
        requests = [requests[number] for number in order["only"]]
    return engine.run(requests, workload.output_tokens, order["rivals"])


def _as_path(key: str, value: Any) -> Any:
    return value if key == "vocabulary" else Path(value)


def _answer(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(f"{json.dumps(document)}\n")
    answers.flush()


if __name__ == "__main__":
    main(open_engine)
