"""The switch that the cost of recording is measured with."""

from __future__ import annotations

import pytest

from bench import telemetry_server


@pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn
def test_what_is_switched_off_is_stock_and_comes_back_as_it_was():
    from vllm.v1.engine.output_processor import OutputProcessor

    from server.engine.outputs import AttributedOutputProcessor
    from server.telemetry.recorder import Recorder

    before = dict(AttributedOutputProcessor.__dict__), dict(Recorder.__dict__)
    for _ in range(2):
        telemetry_server.switch_off()
        stock = OutputProcessor._update_stats_from_output
        assert AttributedOutputProcessor._update_stats_from_output is stock
        assert Recorder.record(None, None) is None
        telemetry_server.switch_on()
        assert (dict(AttributedOutputProcessor.__dict__), dict(Recorder.__dict__)) == before
