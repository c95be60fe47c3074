"""A side with the real protocol and no engine: its kind and the answers' length say how it behaves.

It writes to standard output whenever it can, as vLLM and its children do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.model import Home
from bench.side import main
from bench.spec import Outcome, SideSpec
from bench.workload import Request

# Answers of so many tokens take COMPUTING seconds awake; all are reported to take 0.5.
LONG = 100
COMPUTING = 0.4
FATAL = 90  # it dies instead of giving answers of so many tokens
SHORTENED = 91  # it answers with one token too few


class StandinEngine:
    def __init__(self, spec: SideSpec, home: Home) -> None:
        sys.stdout.write("a line of noise\n")
        os.write(1, b"noise below Python\n")
        if spec.kind == "stock":
            raise RuntimeError("this machine is too small")
        self._leaks = spec.kind == "stock-tuned"
        subprocess.run(["echo", "noise of a child"], check=True)
        self._child = subprocess.Popen(["sleep", "600"])

    def run(self, requests: Sequence[Request], output_tokens: int, rivals: bool) -> Outcome:
        sys.stdout.write("noise before an answer")
        if output_tokens == FATAL:
            os._exit(3)
        if output_tokens == SHORTENED:
            output_tokens -= 1
        if output_tokens >= LONG:
            compute()
        # Stock vLLM applies an adapter of the batch to base requests, too.
        last = max((r.adapter for r in requests if r.adapter), default="")
        leak = last if self._leaks else ""
        tokens = [
            [len(request.adapter or leak) + request.prompt[0]] * output_tokens
            for request in requests
        ]
        return Outcome(0.5, tokens, [[[]] * output_tokens] * len(tokens) if rivals else None)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def compute() -> None:
    """Until it was awake for so long: what is missing between two looks at the clock, it was not.

    The processor time that Linux says it used would be simpler, but goes on for some milliseconds
    of each stop on some virtual machines.
    """
    last, awake = time.perf_counter(), 0.0
    while awake < COMPUTING:
        now = time.perf_counter()
        awake += min(now - last, 0.0001)
        last = now


if __name__ == "__main__":
    main(StandinEngine)
