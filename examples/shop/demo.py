"""Trains three adapters, serves them on one NF4 base, calls each and shows which one answered.

    python examples/shop/demo.py          checks the answers and exits 0 (`make demo`)
    python examples/shop/demo.py --stay   serves until Ctrl-C (`make serve`)

It uses only the command line and the HTTP API (with the OpenAI client), as a user does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BASE = HERE / "base"
BASE_NAME = "shop-base"
DATA = HERE / "data"
STORE = ROOT / ".lorry" / "demo" / "store"
LOG = ROOT / ".lorry" / "demo" / "server.log"
ADAPTERS = ("orders-json", "orders-sql", "support-tone")
SHOWN_PROMPTS = 2  # per model, in the table
JUDGED_PROMPTS = 60  # per adapter, also sent to the base, for the exact match
CONCURRENT_CALLS = 48
MOST_BASE = 0.05
LEAST_ADAPTER = 0.90
START_SECONDS = 300

console = Console(width=max(Console().width, 150), highlight=False)


@dataclass(frozen=True)
class Question:
    adapter: str  # the prompt is from its held-out set
    model: str  # the model to call
    prompt: str
    expected: str


@dataclass(frozen=True)
class Reply:
    question: Question
    text: str
    model: str
    adapter: str
    digest: str
    trace_id: str
    first_token: float  # seconds

    @property
    def is_exact(self) -> bool:
        return self.text.strip() == self.question.expected.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stay", action="store_true", help="serve until Ctrl-C")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, with --stay 8000")
    options = parser.parse_args()
    began = time.monotonic()
    port = free_port(options.port or (8000 if options.stay else 0))
    prepare()
    with serving(port, quiet=not options.stay) as server:
        if options.stay:
            print_invitation(port)
            return wait_for(server)
        replies = asyncio.run(ask_all(port))
        show(replies)
        passed = judge(replies)
    code = server.returncode
    console.print(f"server stopped with exit code {code}; {time.monotonic() - began:.0f} s in all")
    return 0 if passed and code == 0 else 1


def prepare() -> None:
    """Makes data, adapters and store; reuses the results of an earlier run."""
    with step("data: generate shop orders and messages"):
        run(sys.executable, "-m", "training.shop", "--out", str(DATA))
    for name in ADAPTERS:
        with step(f"train {name} with QLoRA and publish it"):
            recipe = str(HERE / "recipes" / f"{name}.yaml")
            run(*lorry("train", recipe, "--publish", "--store", str(STORE)))


@contextlib.contextmanager
def serving(port: int, *, quiet: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `lorry serve` in a process of its own: ready on entry, stopped on exit.

    With `quiet` its log goes to a file.
    """
    command = lorry("serve", str(BASE), "--served-model-name", BASE_NAME, "--port", str(port))
    console.print(f"\n$ lorry {' '.join(command[3:])} --store {STORE.relative_to(ROOT)}")
    if quiet:
        console.print(f"log: {LOG.relative_to(ROOT)}")
    with LOG.open("wb") as log:
        out = log if quiet else None
        server = subprocess.Popen(
            [*command, "--store", str(STORE)], cwd=ROOT, stdout=out, stderr=out
        )
    try:
        wait_until_ready(server, port)
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    began = time.monotonic()
    while time.monotonic() < began + START_SECONDS:
        if server.poll() is not None:
            raise SystemExit(f"error: the server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                console.print(f"ready after {time.monotonic() - began:.1f} s")
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"error: the server was not ready within {START_SECONDS} s")


async def ask_all(port: int) -> list[Reply]:
    """Sends every held-out prompt to its adapter and to the base, all concurrently."""
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    turns = asyncio.Semaphore(CONCURRENT_CALLS)
    questions = [
        Question(adapter, model, prompt, expected)
        for row in zip(*(heldout(name) for name in ADAPTERS), strict=True)
        for adapter, (prompt, expected) in zip(ADAPTERS, row, strict=True)
        for model in (adapter, BASE_NAME)
    ]
    console.print(f"\ncalling base and adapters with {len(questions)} held-out prompts, mixed ...")
    began = time.monotonic()
    async with client:
        replies = await asyncio.gather(*(ask(client, turns, each) for each in questions))
    console.print(f"all answered after {time.monotonic() - began:.1f} s\n")
    return list(replies)


async def ask(client: AsyncOpenAI, turns: asyncio.Semaphore, question: Question) -> Reply:
    async with turns:
        started = time.perf_counter()
        raw = await client.chat.completions.with_raw_response.create(
            model=question.model,
            messages=[{"role": "user", "content": question.prompt}],
            temperature=0,
            max_tokens=200,
            stream=True,
        )
        parts: list[str] = []
        model, first_token = "", 0.0
        async for chunk in raw.parse():
            model = chunk.model
            if chunk.choices and chunk.choices[0].delta.content:
                first_token = first_token or time.perf_counter() - started
                parts.append(chunk.choices[0].delta.content)
    return Reply(
        question=question,
        text="".join(parts),
        model=model,
        adapter=raw.headers["x-lorry-adapter"],
        digest=raw.headers.get("x-lorry-adapter-digest", ""),
        trace_id=raw.headers["traceresponse"].split("-")[1],
        first_token=first_token,
    )


def show(replies: list[Reply]) -> None:
    """Prints some calls with what the response reports."""
    table = Table(title="which model answered", show_lines=True)
    for column in ("prompt", "model", "answer", "served by", "digest", "TTFT", "trace id"):
        table.add_column(column, overflow="fold", no_wrap=column in ("digest", "trace id"))
    shown = dict.fromkeys((*ADAPTERS, BASE_NAME), 0)
    for reply in replies:
        model = reply.question.model
        if shown[model] == SHOWN_PROMPTS:
            continue
        shown[model] += 1
        digest = reply.digest.removeprefix("sha256:")[:12]
        first_token = f"{reply.first_token * 1000:.0f} ms"
        cells = (reply.question.prompt, model, reply.text, reply.adapter, digest, first_token)
        table.add_row(*cells, reply.trace_id)
    console.print(table)


def judge(replies: list[Reply]) -> bool:
    """Exact match on held-out prompts; True if every bound is met and every answer attributed."""
    table = Table(title=f"exact match on {JUDGED_PROMPTS} held-out prompts each")
    for column in ("task", "adapter", f"base ({BASE_NAME})", "required", "attribution correct"):
        table.add_column(column)
    passed = True
    for name in ADAPTERS:
        adapter, attributed = score(replies, name, name)
        base, base_attributed = score(replies, name, BASE_NAME)
        attributed = attributed and base_attributed
        good = adapter >= LEAST_ADAPTER and base <= MOST_BASE and attributed
        passed = passed and good
        required = f"adapter >= {LEAST_ADAPTER:.0%}, base <= {MOST_BASE:.0%}"
        correct = "yes" if attributed else "[red]no[/red]"
        mark = "" if good else " [red]missed[/red]"
        table.add_row(name, f"{adapter:.1%}", f"{base:.1%}", required + mark, correct)
    console.print(table)
    return passed


def score(replies: list[Reply], task: str, model: str) -> tuple[float, bool]:
    """(share of exact answers, whether each response names the requested model)."""
    asked = [r for r in replies if r.question.adapter == task and r.question.model == model]
    served = "base" if model == BASE_NAME else model
    exact = sum(reply.is_exact for reply in asked) / len(asked)
    # Header and body of every response.
    attributed = all(
        reply.adapter.partition("@")[0] == served
        and reply.model == (BASE_NAME if model == BASE_NAME else reply.adapter)
        for reply in asked
    )
    return exact, attributed


def heldout(name: str) -> list[tuple[str, str]]:
    """(prompt, expected answer) pairs that are not in the training data."""
    lines = (DATA / f"{name}.heldout.jsonl").read_text().splitlines()[:JUDGED_PROMPTS]
    examples = [json.loads(line)["messages"] for line in lines]
    return [(user["content"], assistant["content"]) for user, assistant in examples]


def print_invitation(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    prompt, _ = heldout("orders-json")[0]
    body = json.dumps({"model": "orders-json", "messages": [{"role": "user", "content": prompt}]})
    python = (
        f'from openai import OpenAI; c = OpenAI(base_url="{url}/v1", api_key="none"); '
        f'print(c.chat.completions.create(model="orders-sql", temperature=0, messages='
        f'[{{"role": "user", "content": {json.dumps(prompt)}}}]).choices[0].message.content)'
    )
    console.print("\nTry in another terminal (Ctrl-C here stops the server):\n", style="bold")
    header = "content-type: application/json"
    curl = ("curl", "-si", f"{url}/v1/chat/completions", "-H", header, "-d", body)
    for command in (curl, (".venv/bin/python", "-c", python)):
        console.print(shlex.join(command) + "\n", soft_wrap=True, markup=False)
    console.print(f"curl -s {url}/metrics | grep ^lorry_requests_total\n", soft_wrap=True)


def wait_for(server: subprocess.Popen[bytes]) -> int:
    # Ctrl-C also reaches the server, which drains and ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.send_signal(signal.SIGTERM))
    return server.wait()


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    console.print(f"[bold]{title}[/bold]")
    began = time.monotonic()
    yield
    console.print(f"  done in {time.monotonic() - began:.1f} s")


def lorry(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lorry", *arguments]


def run(*command: str) -> None:
    if (code := subprocess.run(command, cwd=ROOT, check=False).returncode) != 0:
        raise SystemExit(code)


def free_port(wanted: int) -> int:
    """`wanted`, or a free one for 0; fails early if another server listens there."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise SystemExit(f"error: port {wanted}: {error.strerror}; try --port 0") from None
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
