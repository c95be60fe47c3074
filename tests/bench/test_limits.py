"""The measurement of what limits cost a call runs, and counts every call."""

from __future__ import annotations

from datetime import UTC, datetime

from adapters.catalog import Catalog
from bench.limits import measure


async def test_each_call_is_timed_and_counted(tmp_path):
    with Catalog.open(tmp_path) as catalog:
        found = await measure(catalog, calls=100, running=3)
        assert len(found) == 100
        assert min(found) > 0
        usage = catalog.usage.report([], datetime(2020, 1, 1, tzinfo=UTC))
    assert usage[0]["calls"] == 103
