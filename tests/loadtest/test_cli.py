"""The commands against a server that answers, one that fails, and none."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai_standin import Manner, Standin, piece, serve
from server_process import ROOT
from typer.testing import CliRunner

from loadtest import cli, sweep

SCENARIO = """
name: short
adapters: 2
streams:
  mixed: {adapters: {count: 2}, base_share: 0.3, prompt_tokens: 4, output_tokens: 3, streaming: 0.8}
phases:
  - {name: steady, seconds: 1, traffic: {mixed: {kind: constant, rate: 20}}}
expect:
  - {metric: ttft_p99_ms, at_most: 5000}
"""


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with serve() as standin:
        yield standin


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No signal handlers, which a thread can't set, and short warm-ups of sweeps."""
    monkeypatch.setattr(cli, "_handle_signals", lambda: None)
    warm_up = sweep._WARM_UP.model_copy(update={"seconds": 0.3})
    monkeypatch.setattr(sweep, "_WARM_UP", warm_up)


async def loadtest(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; in a thread, because the event loop serves the stand-in."""
    done = await asyncio.to_thread(CliRunner().invoke, cli.app, list(map(str, arguments)))
    return done.exit_code, done.stdout, done.stderr


async def test_a_run_passes_and_writes_its_reports(standin, scenario, tmp_path):
    folder, lines = tmp_path / "out", tmp_path / "calls.jsonl"
    code, out, err = await loadtest(
        *(scenario, "--url", standin.url, "--out", folder, "--records", lines, "--json")
    )
    assert code == 0, out + err
    report = json.loads(out)
    assert report["passed"]
    assert report["summary"]["overall"]["requests"] == 20
    assert set(report["summary"]["adapters"]) == {"one", "two"}
    assert json.loads((folder / "report.json").read_text()) == report
    assert "PASSED" in (folder / "report.html").read_text()
    assert "PASSED" in err  # the table: stdout holds the document alone
    calls = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(call["number"] for call in calls) == list(range(20))
    assert len(standin.asked) == 20


async def test_failing_calls_fail_the_run_with_their_reason(standin, scenario, tmp_path):
    standin.choose = lambda body: Manner(status=503) if body["model"] == "two" else Manner()
    code, out, _ = await loadtest(scenario, "--url", standin.url, "--out", tmp_path / "out")
    assert code == 1
    assert "http_503" in out
    assert "FAILED" in out


async def test_the_api_key_is_sent_with_each_call(standin, scenario, tmp_path):
    await loadtest(
        *(scenario, "--url", f"{standin.url}/v1/", "--api-key", "k-1", "--out", tmp_path / "out")
    )
    assert {each["Authorization"] for each in standin.headers} == {"Bearer k-1"}


async def test_no_report_has_the_password_of_the_address(standin, scenario, tmp_path):
    url = standin.url.replace("//", "//me:secret@")
    code, out, err = await loadtest(scenario, "--url", url, "--out", tmp_path, "--json")
    assert code == 0, err
    assert json.loads(out)["target"] == standin.url
    assert "secret" not in out + err + (tmp_path / "report.html").read_text()


async def test_markers_of_other_adapters_are_refused(standin, scenario, tmp_path):
    marked = {"lt-0000": {"1": {"folder": "lt-0000.v1", "marker": " word"}}}
    document = {"base": "tiny", "digest": "", "adapters": marked}
    (tmp_path / "markers.json").write_text(json.dumps(document))
    code, _, err = await loadtest(
        *(scenario, "--url", standin.url, "--markers", tmp_path, "--out", tmp_path / "out")
    )
    assert code == 3
    assert "has no adapter one" in err


async def test_a_sweep_reports_its_rates_and_the_knee(standin, scenario, tmp_path):
    code, out, err = await loadtest(
        *("sweep", scenario, "--url", standin.url, "--rates", "20,5", "--seconds", "1"),
        *("--out", tmp_path, "--json"),
    )
    assert code == 0, err
    assert [point["offered"] for point in json.loads(out)["points"]] == [5, 20]
    assert "Plotly.newPlot(" in (tmp_path / "sweep.html").read_text()


async def test_a_sweep_with_wrong_answers_fails(standin, scenario, tmp_path):
    others = Manner(frames=[piece("a", model="other"), piece("b", "length", "other")])
    standin.choose = lambda body: others if body.get("stream") else Manner()
    code, out, _ = await loadtest(
        *("sweep", scenario, "--url", standin.url, "--rates", "20", "--seconds", "1"),
        *("--out", tmp_path),
    )
    assert code == 1
    assert "wrong answers" in out
    assert "wrong answers" in (tmp_path / "sweep.html").read_text()


# Real processes, because signals need them. A script's background jobs begin with SIGINT ignored.
@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
async def test_a_signal_ends_a_run_like_ctrl_c(standin, scenario, tmp_path, inherited):
    scenario.write_text(SCENARIO.replace("seconds: 1", "seconds: 60"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lorry", "loadtest", str(scenario), "--url", standin.url),
        *("--out", str(tmp_path / "out")),
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, inherited),
    )
    await standin.came.wait()
    process.terminate()
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert b"stopped: nothing was written" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["smoke"], 2, "give --url URL"),
        (["smoke", "--url", "http://127.0.0.1:1", "--serve", "x"], 2, "give --url URL"),
        (["smoke", "--url", "localhost:8000"], 2, "give http://HOST:PORT"),
        (["smoke", "--url", "http://127.0.0.1:1"], 3, "can't be reached"),
        (["nothing-of-this-name", "--url", "http://127.0.0.1:1"], 2, "there are base-only"),
        (["absent.yaml", "--url", "http://127.0.0.1:1"], 2, "can't read absent.yaml"),
        (["rollout-under-load", "--url", "http://127.0.0.1:1"], 2, "admin token"),
        (
            ["smoke", "--url", "http://127.0.0.1:1", "--admin-token-file", "no"],
            2,
            "token's file no",
        ),
        (["sweep", "smoke", "--url", "http://127.0.0.1:1", "--rates", "0"], 2, "--rates"),
        (["sweep", "smoke", "--url", "http://127.0.0.1:1", "--stream", "x"], 2, "no stream 'x'"),
        (["compare", "smoke", "--serve", "absent", "--peers", "other"], 2, "no peer 'other'"),
        (["compare", "default", "--serve", "absent"], 2, "has actions"),
        (["compare", "smoke", "--serve", "absent", "--peers", "merged"], 2, "calls the base"),
        (["smoke", "--serve", "absent"], 3, "absent"),
        (["mark", "absent", "--out", "never-made"], 3, "absent"),
    ],
)
async def test_errors_are_one_sentence_with_an_exit_code(
    arguments, code, words, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    ended, out, err = await loadtest(*arguments)
    assert ended == code
    assert words in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert out == ""


async def test_the_included_scenarios_are_listed():
    code, out, _ = await loadtest("list")
    assert code == 0
    names = {path.stem for path in (ROOT / "loadtest" / "scenarios").glob("*.yaml")}
    assert {line.split()[0] for line in out.splitlines()} == names


async def test_a_comparison_with_llama_cpp_says_how_to_build_it(tmp_path):
    folder = ("--llama-cpp", tmp_path / "none")
    code, _, stderr = await loadtest(
        "compare", "base-only", "--serve", tmp_path, "--peers", "llamacpp", *folder
    )
    assert code == 2
    assert "make llama-cpp" in stderr
