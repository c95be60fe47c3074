"""A cluster for real: Ray on this machine, two replicas, a gateway, PostgreSQL, one store.

It starts some ten processes, because what it proves is what happens between them. In the quick tier
a stand-in takes the place of vLLM inside the replicas; with --all they are whole servers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import httpx2
import pytest
from marked_server import write_adapter
from postgres_process import Postgres, Unavailable
from publishing import publish
from server_process import ROOT

pytestmark = pytest.mark.engine  # alone on the cores

BASE = ROOT / "examples" / "shop" / "base"
BASE_NAME = "tiny-base"
ADMIN = "a-token-of-the-tests"
NAMES = [f"adapter-{number}" for number in range(12)]


@dataclass
class Cluster:
    url: str
    settings: dict[str, str]
    replica: type
    store: Path
    version: Iterator[int] = field(default_factory=lambda: count(2))

    def deploy(self, most: int = 0, **settings: object) -> None:
        """Brings the servers up, or upgrades them."""
        from ray import serve

        from cluster.app import servers_application
        from cluster.arguments import SERVERS, ServersArguments

        arguments = ServersArguments(
            settings=self.settings | settings,
            replicas=2,
            cpus=0,
            host="127.0.0.1",
            max_replicas=most,
        )
        serve.run(servers_application(arguments, self.replica), name=SERVERS, route_prefix=None)

    def replicas(self) -> list[dict]:
        return httpx2.get(f"{self.url}/cluster", timeout=60).json()["replicas"]

    def wait_for(self, names: set[str], gone: bool = False) -> float:
        """Waits until there are two replicas, without (or only with) these; returns the seconds."""
        started = time.monotonic()
        while time.monotonic() - started < 120:
            found = {each["name"] for each in self.replicas()}
            if len(found) == 2 and (found.isdisjoint(names) if gone else found != names):
                return time.monotonic() - started
            time.sleep(0.1)
        raise AssertionError(f"{self.replicas()}")

    def child_of(self, replica: dict) -> int:
        """The process of its `lorry serve`, by the port that it listens on."""
        port = replica["url"].rpartition(":")[2]
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes()
            except OSError:
                continue
            is_server = f"LORRY_PORT={port}\0".encode() in environment
            # Its engine inherits the environment, and has a parent to watch besides.
            if is_server and b"LORRY_PARENT_PID=" not in environment:
                return int(path.parent.name)
        raise AssertionError(f"no process of {replica}")


@pytest.fixture(
    scope="module", params=["stand-in", pytest.param("tiny base", marks=pytest.mark.slow)]
)
def cluster(request, tmp_path_factory) -> Iterator[Cluster]:
    try:
        postgres = Postgres()
    except Unavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cluster")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORRY_CATALOG", postgres.url)
    patch.setenv("LORRY_ADMIN_TOKEN", ADMIN)
    patch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'fixtures'}:{ROOT}")
    try:
        yield from _run(request.param, folder, postgres)
    finally:
        patch.undo()
        postgres.remove()


def _run(kind: str, folder: Path, postgres: Postgres) -> Iterator[Cluster]:
    import ray
    from ray import serve
    from standin_serve import StandInReplica

    from cluster.app import Server, build_gateway
    from cluster.arguments import GATEWAY
    from server.preflight import bind

    base = folder / BASE_NAME
    base.symlink_to(BASE)
    for seed, name in enumerate(NAMES):
        publish(
            write_adapter(folder / name, seed),
            name=name,
            store=folder / "store",
            base=base,
            catalog_url=postgres.url,
        )
    with bind("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    ray.init(
        include_dashboard=False,
        num_cpus=4,
        object_store_memory=80 << 20,
        logging_level="error",
        log_to_driver=False,
    )
    try:
        serve.start(proxy_location="Disabled")
        settings = {
            "model": str(base),
            "served_model_name": BASE_NAME,
            "store": str(folder / "store"),
            "cache": str(folder / "cache"),
            "max_cpu_loras": "16",
            "threads": "1",
        }
        replica = StandInReplica if kind == "stand-in" else Server
        cluster = Cluster(f"http://127.0.0.1:{port}", settings, replica, folder / "store")
        # The gateway first: in a Serve config the two come up in any order.
        serve.run(build_gateway({"port": port}), name=GATEWAY, route_prefix=None)
        cluster.deploy()
        yield cluster
    finally:
        serve.shutdown()
        ray.shutdown()


@dataclass
class Call:
    adapter: str
    status: int = 0
    replica: str = ""
    served: str = ""
    began: bool = False
    complete: bool = False
    started: float = 0.0


class Load:
    """Closed loops of streams, whose adapters follow a power law."""

    def __init__(self, cluster: Cluster, streams: int, tokens: int = 20) -> None:
        self.cluster = cluster
        self.calls: list[Call] = []
        self.streams = streams
        self.tokens = tokens
        self.stopped = False

    async def run(self, meanwhile) -> list[Call]:
        """Runs while `meanwhile` does, in a thread."""
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(timeout=120, limits=limits) as http:
            loops = [asyncio.create_task(self.loop(http, Random(n))) for n in range(self.streams)]
            try:
                await asyncio.to_thread(meanwhile)
            finally:
                self.stopped = True
                await asyncio.gather(*loops)
        return self.calls

    async def loop(self, http: httpx2.AsyncClient, dice: Random) -> None:
        weights = [1 / (rank + 1) for rank in range(len(NAMES))]
        while not self.stopped:
            call = Call(dice.choices(NAMES, weights)[0], started=time.monotonic())
            self.calls.append(call)
            await self.ask(http, call)

    async def ask(self, http: httpx2.AsyncClient, call: Call) -> None:
        body = {
            "model": call.adapter,
            "prompt": "x " * 10,
            "stream": True,
            "max_tokens": self.tokens,
            "ignore_eos": True,
        }
        headers = {"x-tokens": str(self.tokens)}
        url = f"{self.cluster.url}/v1/completions"
        async with http.stream("POST", url, json=body, headers=headers) as answer:
            call.status = answer.status_code
            call.replica = answer.headers.get("x-lorry-replica", "")
            call.served = answer.headers.get("x-lorry-adapter", "")
            text = ""
            async for piece in answer.aiter_text():
                call.began = True
                text += piece
            call.complete = "[DONE]" in text and '"error"' not in text


def lost(calls: list[Call]) -> list[Call]:
    """The calls that failed though the caller had got nothing."""
    return [each for each in calls if not each.complete and not (each.began and each.status == 200)]


def test_calls_of_an_adapter_stay_together_and_the_base_spreads(cluster):
    calls = asyncio.run(Load(cluster, streams=6).run(lambda: time.sleep(6)))
    assert lost(calls) == []
    homes: dict[str, Counter[str]] = defaultdict(Counter)
    for call in calls:
        homes[call.adapter][call.replica] += 1
        assert call.served == f"{call.adapter}@1"
    at_home = sum(found.most_common(1)[0][1] for found in homes.values())
    assert len(calls) > 30
    assert at_home / len(calls) >= 0.9, homes
    assert len({found.most_common(1)[0][0] for found in homes.values()}) == 2

    async def base_calls() -> set[str]:
        body = {"model": BASE_NAME, "prompt": "x", "max_tokens": 20}
        async with httpx2.AsyncClient(timeout=60) as http:
            asked = (http.post(f"{cluster.url}/v1/completions", json=body) for _ in range(6))
            answers = await asyncio.gather(*asked)
        assert {each.headers["x-lorry-adapter"] for each in answers} == {"base"}
        return {each.headers["x-lorry-replica"] for each in answers}

    assert asyncio.run(base_calls()) == {each["name"] for each in cluster.replicas()}


def test_a_rollout_is_in_force_everywhere_after_a_second(cluster, tmp_path):
    headers = {"authorization": f"Bearer {ADMIN}"}
    publish(
        write_adapter(tmp_path / "second", 99),
        name=NAMES[0],
        store=cluster.store,
        base=Path(cluster.settings["model"]),
        catalog_url=os.environ["LORRY_CATALOG"],
        aliases=("next",),
    )
    moved: list[float] = []

    def roll_out() -> None:
        time.sleep(2)
        answer = httpx2.put(
            f"{cluster.url}/admin/adapters/{NAMES[0]}/aliases/stable",
            json={"version": 2},
            headers=headers,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        moved.append(time.monotonic())
        time.sleep(4)

    calls = asyncio.run(Load(cluster, streams=6).run(roll_out))
    served = [each for each in calls if each.adapter == NAMES[0]]
    after = {each.served for each in served if each.started > moved[0] + 1}
    assert after == {f"{NAMES[0]}@2"}
    assert f"{NAMES[0]}@1" in {each.served for each in served}
    assert lost(calls) == []


@pytest.mark.parametrize("victim", ["server", pytest.param("replica", marks=pytest.mark.slow)])
def test_a_replica_that_is_killed_is_replaced_and_fails_no_call_that_had_not_begun(cluster, victim):
    before = cluster.replicas()
    child = cluster.child_of(before[0])
    parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    took: list[float] = []

    def kill() -> None:
        time.sleep(2)
        os.kill(child if victim == "server" else parent, signal.SIGKILL)
        took.append(cluster.wait_for({before[0]["name"]}, gone=True))
        time.sleep(1)

    calls = asyncio.run(Load(cluster, streams=8).run(kill))
    assert lost(calls) == []
    cut = [each for each in calls if not each.complete]
    assert {each.replica for each in cut} <= {before[0]["name"]}
    report = f"replaced in {took[0]:.1f} s; of {len(calls)} calls {len(cut)} had begun and were cut"
    sys.stdout.write(f"\n{victim}: {report}\n")  # seen with -s
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists(), "the server outlived its replica"


@pytest.mark.slow
def test_an_upgrade_loses_no_call(cluster):
    before = {each["name"] for each in cluster.replicas()}

    def upgrade() -> None:
        time.sleep(1)
        cluster.deploy(max_queue_calls="512")
        cluster.wait_for(before, gone=True)
        time.sleep(1)

    calls = asyncio.run(Load(cluster, streams=6, tokens=100).run(upgrade))
    assert [each for each in calls if not each.complete] == []
    assert {each.replica for each in calls} > before, "old and new ones have answered"


@pytest.mark.slow  # Ray waits before it adds a server
def test_calls_that_wait_bring_another_server(cluster):
    cluster.deploy(most=3)
    before = len(cluster.replicas())

    def wait() -> None:
        deadline = time.monotonic() + 180
        while len(cluster.replicas()) == before:
            assert time.monotonic() < deadline, "no server was added"
            time.sleep(0.5)

    assert before == 2
    assert lost(asyncio.run(Load(cluster, streams=150).run(wait))) == []
    cluster.deploy()


def test_metrics_of_all_replicas_stand_on_one_page(cluster):
    text = httpx2.get(f"{cluster.url}/metrics", timeout=60).text
    for each in cluster.replicas():
        assert f'lorry_engine_up{{replica="{each["name"]}"}} 1.0' in text
