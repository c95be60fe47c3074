"""Our subclasses of vLLM's classes, without an engine process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.call import Lease, current_call
from server.engine.interface import EngineGone, EngineRefusal
from server.presence import Presence
from server.settings import Settings
from server.suspects import Suspects

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

RED = SimpleNamespace(lora_name="red@1#d.1")


@pytest.fixture
def call():
    call = SimpleNamespace(
        version=SimpleNamespace(label="red@1"),
        lease=Lease("red@1#d.1", RED),
        requested_model="red",
        resolved=True,
        sequences=[],
        late_status=0,
        refusal=None,
        engine_error=None,
        error_code=None,
    )
    token = current_call.set(call)
    yield call
    current_call.reset(token)


@pytest.mark.parametrize(
    ("version", "runs", "agrees"),
    [
        ("red@1", RED, True),
        (None, None, True),
        ("red@1", None, False),  # the base instead of the adapter
        (None, RED, False),  # an adapter instead of the base
        ("green@1", RED, False),  # another adapter
    ],
)
def test_a_sequence_runs_only_with_the_adapter_of_its_call(call, version, runs, agrees):
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.output_processor import OutputProcessor

    from server.engine.outputs import AttributedOutputProcessor

    processor = OutputProcessor(None, log_stats=True)
    processor.__class__ = AttributedOutputProcessor
    call.version = SimpleNamespace(label=version) if version else None
    request = SimpleNamespace(lora_request=runs, request_id="r")
    # After the check, vLLM's own code fails on the incomplete request.
    with pytest.raises(AttributeError if agrees else VLLMValidationError):
        processor.add_request(request, "prompt")
    assert processor.request_states == {}
    assert call.sequences == []


def test_handlers_see_only_the_leased_adapter_under_the_requested_name(call):
    from server.engine.models import CallModels, CallRequests

    requests = CallRequests()
    assert "red" in requests
    assert requests["red"].lora_name == requests.get("red").lora_name == "red@1"
    for other in ("green", "red@1", "", None):
        assert other not in requests
    with pytest.raises(KeyError):
        requests["green"]
    assert [*requests, *requests.values()] == []
    assert len(requests) == 0

    models = CallModels.__new__(CallModels)
    models.base_model_paths = [SimpleNamespace(name="tiny")]
    models.registry = SimpleNamespace(is_base_model=lambda name: name == "tiny")
    assert models.model_name(RED) == "red@1"
    assert not models.is_base_model("tiny")  # not for a call that leased an adapter
    call.version = None
    assert models.is_base_model("tiny")
    assert not models.is_base_model("red*0")
    call.requested_model = "red*0"  # a sum that comes to the base
    assert models.is_base_model("red*0")
    assert models.model_name(None) == "tiny"


async def test_a_call_into_the_engine_ends_when_the_engine_does():
    from server.engine.client import Engine

    engine = Engine.__new__(Engine)
    engine.output_handler = asyncio.create_task(asyncio.sleep(0.05))
    never = asyncio.get_running_loop().create_future()
    with pytest.raises(EngineGone, match="ended"):
        await engine._ask(never, within=5)
    assert never.cancelled()

    engine.output_handler = asyncio.create_task(asyncio.sleep(5))
    with pytest.raises(EngineGone, match="in time"):
        await engine._ask(asyncio.get_running_loop().create_future(), within=0.05)
    engine.output_handler.cancel()


@pytest.mark.parametrize(
    ("message", "kind", "shown"),
    [
        ("Call to add_lora method failed: LoRA rank 16 is greater", EngineRefusal, "LoRA rank 16"),
        ("Call to add_lora method failed: ", EngineRefusal, "no reason given"),
        ("Loading lora x failed: No adapter found for /a/b/c", EngineRefusal, "found for ..."),
        ("Call to add_lora method failed: Server shutting down", EngineGone, "ended"),
    ],
)
async def test_a_workers_message_is_shown_without_wrapping_or_paths(message, kind, shown):
    from server.engine.client import Engine

    class Alive(Engine):
        is_dead = False

        def __del__(self):
            """AsyncLLM's would shut down an engine that was never built."""

    engine = Alive.__new__(Alive)
    engine.output_handler = asyncio.create_task(asyncio.sleep(0.3))

    async def fail():
        raise Exception(message)

    with pytest.raises(kind) as raised:
        await engine._ask(fail(), within=5)
    assert shown in str(raised.value)
    engine.output_handler.cancel()


async def test_a_load_does_not_wait_until_the_evicted_adapter_has_left(caplog):
    from vllm.v1.engine.output_processor import OutputProcessor

    from server.engine.client import Engine
    from server.kernels import STAGING

    class Alive(Engine):
        is_dead = False

        def __del__(self):
            """AsyncLLM's would shut down an engine that was never built."""

    asked = []
    leaving = asyncio.get_running_loop().create_future()

    async def call_utility(method, *arguments):
        asked.append((method, arguments))
        if method == "collective_rpc":
            await leaving

    engine = Alive.__new__(Alive)
    engine.output_processor = OutputProcessor(None, log_stats=True)
    engine.attach(None, None, None, Presence(), Suspects())
    engine.vllm_config = SimpleNamespace(
        parallel_config=SimpleNamespace(worker_extension_cls=STAGING),
        lora_config=SimpleNamespace(max_cpu_loras=8),
    )
    engine.output_handler = asyncio.create_task(asyncio.sleep(5))
    engine.engine_core = SimpleNamespace(call_utility_async=call_utility)
    engine.collective_rpc = lambda method, args: call_utility("collective_rpc", method, *args)
    red = SimpleNamespace(lora_name="red@1#d.5", lora_int_id=5, lora_path="/store/d")

    await engine.add_adapter(red, [3], within=5)
    await asyncio.sleep(0)
    assert sorted(asked) == [
        ("collective_rpc", ("drop_adapter", 3)),
        ("stage_adapter", ("red@1#d.5", 5, "/store/d")),
    ]
    await engine.add_adapter(red, [4], within=5)
    third = asyncio.create_task(engine.add_adapter(red, [6], within=5))
    await asyncio.wait({third}, timeout=0.05)
    assert not third.done()  # a quarter of the places is leaving already
    leaving.set_exception(Exception("it failed"))
    await third
    await asyncio.gather(*engine._drops, return_exceptions=True)
    assert "did not confirm that an adapter left" in caplog.text
    assert engine._drops == set()
    engine.output_handler.cancel()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (lambda vllm: vllm.VLLMValidationError("bad", parameter="n"), 400, "invalid_request"),
        (lambda vllm: vllm.QueueOverflowError(), 503, "unavailable"),
    ],
)
def test_a_refusal_by_the_engine_is_kept_on_its_call(call, error, status, code):
    from vllm import exceptions

    from server.engine.client import _note_refusal

    _note_refusal(call, error(exceptions))
    assert (call.refusal.status, call.refusal.code) == (status, code)
    assert (call.late_status, call.error_code, call.engine_error) == (status, code, None)


def test_a_failure_of_the_engine_is_no_refusal(call):
    from server.engine.client import _note_refusal

    _note_refusal(call, RuntimeError("odd"))
    assert (call.refusal, call.engine_error) == (None, "RuntimeError")


def test_a_request_that_the_engine_refuses_ends_with_an_error(call):
    from vllm.v1.engine.output_processor import OutputProcessor

    from server.engine.outputs import AttributedOutputProcessor

    processor = OutputProcessor(None, log_stats=True)
    processor.__class__ = AttributedOutputProcessor
    reasons = {"refused": None, "stopped": "stop"}
    for name, reason in reasons.items():
        sequence = SimpleNamespace(finish_reason=reason)
        state = SimpleNamespace(request_id=name, external_req_id=name, parent_req=None)
        state.lorry = (call, sequence)
        processor.request_states[name] = state
        processor.external_req_ids[name] = [name]
        processor._finish_request(state)
        reasons[name] = sequence.finish_reason
    assert reasons == {"refused": "error", "stopped": "stop"}
    assert processor.request_states == {}


async def test_a_request_of_a_broken_adapter_ends_with_an_error_that_names_it(call):
    from vllm.exceptions import GracefulHTTPError
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import InputStreamError
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    from server.engine.outputs import AttributedOutputProcessor

    counts = []
    processor = OutputProcessor(None, log_stats=True)
    processor.__class__ = AttributedOutputProcessor
    processor.observer = SimpleNamespace()
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "r")
    call.repaired_values = 0
    state = SimpleNamespace(lorry=(call, SimpleNamespace()), queue=queue, lora_name="red")
    for count in (12, 30):
        output = SimpleNamespace(new_token_ids=[], prefill_stats=None, num_nans_in_logits=count)
        processor._record_output(state, output, timestamp=1.0, last=0.0)
        counts.append(call.lease.repaired_values)
    with pytest.raises(InputStreamError) as raised:
        queue.get_nowait()
    assert isinstance(raised.value.cause, GracefulHTTPError)
    assert "red@1 computes values that are not finite" in str(raised.value.cause)
    assert queue.get_nowait() is None  # the second replaced the first
    assert (counts, call.repaired_values, call.engine_error) == ([12, 30], 30, "AdapterUnhealthy")


def test_no_exception_of_recording_reaches_vllms_output_loop(call, caplog):
    from vllm.v1.engine.output_processor import OutputProcessor

    from server.engine.outputs import AttributedOutputProcessor

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("a bug")

    processor = OutputProcessor(None, log_stats=True)
    processor.__class__ = AttributedOutputProcessor
    processor.observer = Broken()
    sequence = SimpleNamespace(finish_reason=None)
    state = SimpleNamespace(lorry=(call, sequence), stats=None)
    output = SimpleNamespace(new_token_ids=[1], prefill_stats=None, num_nans_in_logits=0)
    processor._record_output(state, output, timestamp=2.0, last=1.0)
    processor.update_scheduler_stats(
        SimpleNamespace(num_running_reqs=3, waiting_lora_adapters={}, running_lora_adapters={})
    )
    state.lorry = "not a pair"
    processor._record_end(state, "stop")
    processor.request_states = {"r": SimpleNamespace(lorry=None)}
    processor._record_error("X")
    processor._record_aborts(["r", "gone"])
    processor._attach(None, None, 0)
    assert caplog.text.count("could not be attributed") == 4


def test_an_exception_in_vllms_metrics_does_not_end_the_output_loop(caplog, monkeypatch):
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    from server.engine.stats import EngineStats

    monkeypatch.setattr(PrometheusStatLogger, "record", lambda *_: 1 / 0)
    EngineStats.__new__(EngineStats).record(None, None)
    assert "could not be counted" in caplog.text


@pytest.mark.parametrize(
    "extra",
    [
        ["--no-enable-lora"],
        ["-q", "fp8"],
        ["-dp", "2"],
        ["--disable-log-stat"],
        ["--lora-module", "a=b"],
        ["--no-such-flag"],
        ["--max-num-seqs", "many"],
    ],
)
def test_flags_after_the_dashes_cannot_change_reserved_ones(tmp_path, extra, capsys):
    from server.engine.arguments import build_arguments
    from server.errors import SettingsInvalid

    settings = Settings(model=Path(tmp_path))
    assert build_arguments(settings, ["--max-num-seqs", "4"]).max_num_seqs == 4
    with pytest.raises(SettingsInvalid):
        build_arguments(settings, extra)


class PanicException(BaseException):
    """As pyo3's, which derives from BaseException."""


@pytest.mark.parametrize("error", [PanicException("index out of bounds"), KeyError(7)])
def test_tokens_that_cannot_be_decoded_end_their_call_and_not_the_engine(call, error):
    from vllm.v1.engine.async_llm import InputStreamError

    from server.engine.outputs import ending_the_call

    def update(tokens, stopped):
        if tokens == [7]:
            raise error
        return "stop"

    put = []
    state = SimpleNamespace(queue=SimpleNamespace(put=put.append))
    call.fault = None
    guarded = ending_the_call(call, state, update)
    assert guarded([1], False) == "stop"
    assert guarded([7], False) is None
    assert call.fault is error
    (ended,) = put
    assert isinstance(ended, InputStreamError)
    assert isinstance(ended.cause, RuntimeError)
    with pytest.raises(KeyboardInterrupt):
        ending_the_call(call, state, lambda: (_ for _ in ()).throw(KeyboardInterrupt))()
