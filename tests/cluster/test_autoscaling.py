"""How many servers a load asks for."""

import pytest

from cluster.autoscaling import decide


@pytest.mark.parametrize(
    ("in_flight", "waiting", "running", "each", "wanted"),
    [
        ([0, 0], [0, 0], 2, 0, 1),
        ([8, 8], [0, 0], 2, 0, 2),
        ([8, 9], [0, 0], 2, 0, 3),
        ([8, 8], [0, 1], 2, 0, 3),  # a call waits: one more
        ([2, 1], [0, 0], 2, 2, 2),
        ([40], [32], 1, 0, 5),
        ([], [], 0, 0, 1),
        ([0], [0], 3, 0, 3),  # two of them say nothing
    ],
)
def test_servers_for_the_calls_in_flight_and_one_more_while_calls_wait(
    in_flight, waiting, running, each, wanted
):
    latest = {"in_flight": in_flight, "waiting": waiting, "capacity": [8.0] * len(in_flight)}
    assert decide(latest, running, each) == wanted
