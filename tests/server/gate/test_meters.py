"""How servers divide a limit: whatever they do in whatever order, their shares never exceed it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from adapters.catalog.shares import Stake
from server.gate.meters import divide

NOBODY = Stake()


@dataclass
class Server:
    """One server's side of a round, as server/gate/sharing.py has it."""

    share: int = 0
    used: int = 0
    demand: float = 0.0
    short: int = 0
    heard: list[Stake] = field(default_factory=list)

    def stake(self) -> Stake:
        return Stake(self.share, self.used, self.demand, self.short)


def hold_round(server: Server, table: dict[int, Stake], number: int, limit: int) -> None:
    server.share = min(server.share, divide(limit, server.stake(), server.heard))
    server.heard = [stake for other, stake in table.items() if other != number]
    server.share = max(server.share, divide(limit, server.stake(), server.heard))
    table[number] = server.stake()
    server.demand *= 0.9


def ask(server: Server, amount: int) -> bool:
    """One call: admitted within the share, or short of it."""
    server.demand += amount
    if server.used + amount > server.share:
        server.short = amount
        return False
    server.used += amount
    server.short = 0
    return True


events = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(("round", "ask", "end")), st.integers(1, 20)),
    max_size=80,
)


@given(events, st.integers(1, 60))
def test_in_whatever_order_servers_ask_their_shares_never_pass_the_limit(events, limit):
    servers, table = [Server() for _ in range(4)], {}
    for number, event, amount in events:
        server = servers[number]
        if event == "round":
            hold_round(server, table, number, limit)
        elif event == "ask":
            ask(server, amount)
        else:
            server.used = max(server.used - amount, 0)
        assert sum(each.used for each in servers) <= limit
        assert sum(stake.share for stake in table.values()) <= limit


@given(st.integers(1, 100), st.integers(2, 5), st.data())
def test_one_busy_server_gets_all_of_a_limit_that_others_leave(limit, count, data):
    servers, table = [Server() for _ in range(count)], {}
    for number, server in enumerate(servers):
        hold_round(server, table, number, limit)
    busy = data.draw(st.integers(0, count - 1))
    admitted = 0
    for _ in range(limit):
        for _ in range(3):  # what a call waits for: the others let go, then the share grows
            if ask(servers[busy], 1):
                admitted += 1
                break
            for number, server in enumerate(servers):
                hold_round(server, table, number, limit)
            hold_round(servers[busy], table, busy, limit)
    assert admitted == limit


def test_a_place_for_one_goes_to_one_of_two_that_want_it():
    servers, table = [Server(), Server()], {}
    for server in servers:
        ask(server, 1)
    for _ in range(3):
        for number, server in enumerate(servers):
            hold_round(server, table, number, 1)
    assert sorted(server.share for server in servers) == [0, 1]


def test_a_quiet_server_keeps_a_part_so_that_its_first_call_need_not_wait():
    busy = Stake(share=100, used=50, demand=100.0)
    assert divide(100, NOBODY, [busy]) == 0, "what another has is not taken"
    assert divide(100, busy, [NOBODY]) == 95
    assert divide(100, NOBODY, [Stake(share=95, used=50, demand=100.0)]) == 4


def test_a_budget_that_is_spent_leaves_only_what_is_held():
    assert divide(-5, Stake(share=10, used=3, demand=9.0, short=4), []) == 3
