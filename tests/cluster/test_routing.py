"""The gateway's picks among the replicas that Ray tells of."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from cluster.gateway.picking import NoReplica
from cluster.membership import Member, membership
from cluster.routing import RayPicker, adapter_of


class House:
    """A picker over a membership that a test tells, in the place of Ray."""

    def __init__(self, *names: str) -> None:
        deployment = str(uuid4())
        self.membership = membership(deployment)
        self.picker = RayPicker(deployment)
        self.tell(*names)

    def tell(self, *names: str) -> None:
        self.membership.tell([Member(n, f"http://{n}", "base", 8) for n in names])

    async def pick(self, model: str | None = None, *avoided: str) -> str:
        async with self.picker.pick(model, avoided, 1) as target:
            assert target.url == f"http://{target.name}"
            return target.name


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        (None, None),
        ("base", None),
        ("orders", "orders"),
        ("orders@3", "orders"),
        ("base:orders@stable", "orders"),
        ("orders@sha256:12", "orders"),
        ("a@1*0.7+b@2*0.3", "a"),
        ("", None),
        ("x" * 1_000_000, None),  # no name: whoever sends it fills no memory
        ("a b", "a"),
        ("\ud800", None),
    ],
)
def test_an_adapter_is_placed_by_its_name_alone(model, adapter):
    assert adapter_of(model, "base") == adapter


async def test_an_adapter_stays_and_the_base_goes_to_the_least_loaded():
    house = House("a", "b", "c")
    homes = {await house.pick("orders"), await house.pick("orders@2"), await house.pick("orders")}
    assert len(homes) == 1
    async with AsyncExitStack() as stack:
        picks = [house.picker.pick("base", (), 1) for _ in range(3)]
        targets = [await stack.enter_async_context(each) for each in picks]
        assert {each.name for each in targets} == {"a", "b", "c"}
        assert house.picker.in_flight == {"a": 1, "b": 1, "c": 1}
    assert house.picker.in_flight == {}


async def test_a_suspect_is_the_last_choice_and_an_avoided_one_too():
    house = House("a", "b")
    home = await house.pick("orders")
    (other,) = {"a", "b"} - {home}
    house.picker.suspect(home)
    assert await house.pick("orders") == other
    assert await house.pick("orders", other) == home
    house.picker.suspect(other)
    assert await house.pick("orders") == home, "with no other, its own again"
    assert await house.pick("orders", home, other) == home


async def test_a_call_waits_for_the_first_replica_but_not_for_ever():
    house = House()
    with pytest.raises(NoReplica):
        async with house.picker.pick("orders", (), 0.01):
            pass
    waiting = [asyncio.create_task(house.pick("orders")) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.to_thread(house.tell, "a")  # Ray tells from its own thread
    assert await asyncio.gather(*waiting) == ["a", "a"]
