"""The fuzzing run: `make fuzz`, or `make fuzz SECONDS=60 SEED=7`.

`python -m tests.fuzz --replay FILE` sends a kept case to a new server, or to one at `--port`.
Exit code 0 if the run passed, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fixtures"))

from shop import keep_shop  # noqa: E402

from tests.fuzz.case import Case  # noqa: E402
from tests.fuzz.drive import play  # noqa: E402
from tests.fuzz.judge import faults  # noqa: E402
from tests.fuzz.run import MAKERS, Run, start  # noqa: E402
from tests.fuzz.verdict import failures, report  # noqa: E402


def main() -> int:
    given = _arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    case = _case(given)
    if case is not None and given.port:
        return _replay(case, given.port)
    with tempfile.TemporaryDirectory() as store:
        shop = keep_shop(Path(store) / "store")
        if case is not None:
            server = start(shop, given.out)
            try:
                return _replay(case, server.wait_ready().port)
            finally:
                server.kill()
        sys.stdout.write(f"seed {given.seed}; cases that fail are kept in {given.out}\n")
        sys.stdout.flush()
        record = asyncio.run(Run(given.seconds, given.seed, given.out, shop).run())
    text = report(record)
    (given.out / "report.json").write_text(json.dumps(record, indent=1))
    (given.out / "report.txt").write_text(text)
    sys.stdout.write(text)
    return 1 if failures(record) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--out", type=Path, default=ROOT / ".lorry" / "fuzz")
    parser.add_argument("--replay", type=Path, help="a kept case")
    parser.add_argument("--case", help="KIND:NUMBER of --seed, instead of a file")
    parser.add_argument("--port", type=int, help="of a server that runs already")
    return parser.parse_args()


def _case(given: argparse.Namespace) -> Case | None:
    if given.replay:
        return Case.from_json(given.replay.read_text())
    if given.case:
        kind, _, number = given.case.partition(":")
        return MAKERS[kind](given.seed, int(number))
    return None


def _replay(case: Case, port: int) -> int:
    outcome = asyncio.run(play(case, port))
    sys.stdout.write(f"{case.name}: {case.title}\n{outcome.ended - outcome.began:.2f} s\n")
    for answer in outcome.answers:
        sys.stdout.write(
            f"{answer.status} {answer.headers}\n{answer.body[:2000].decode(errors='replace')}\n"
        )
    found = faults(outcome)
    sys.stdout.write("".join(f"FAILED {fault}\n" for fault in found) or "no fault\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
