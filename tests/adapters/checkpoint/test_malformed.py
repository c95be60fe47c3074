"""Every malformed adapter is refused by its own code, quickly, and leaves nothing behind."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from adapter_files import CONFIG, WEIGHTS, Draft, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import MALFORMED, Malformed

from adapters.catalog import Catalog
from adapters.errors import CheckpointInvalid
from adapters.publish import Rules, publish
from adapters.store import Store

Offer = Callable[[Path], object]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def offer(store: Path, base_folder: Path) -> Iterator[Offer]:
    """Publishes a folder to a store that all tests share."""
    with Catalog.open(store) as catalog:
        yield lambda folder: publish(
            folder, "bad", store=Store(store), catalog=catalog, rules=Rules(base_folder)
        )


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.title.replace(" ", "-"))
def test_it_is_refused_by_its_own_code(
    case: Malformed, kit, offer: Offer, store: Path, tmp_path: Path
) -> None:
    folder = kit.build().write(tmp_path / "adapter")
    case.make(folder)
    before = list(Store(store).digests())
    began = time.perf_counter()
    with pytest.raises(CheckpointInvalid) as refused:
        offer(folder)
    assert time.perf_counter() - began < 2
    found = {problem.code for problem in refused.value.problems}
    assert case.code in found
    assert found == {case.code} or not case.alone
    assert all(p.where and p.message and p.fix for p in refused.value.problems)
    assert list(Store(store).digests()) == before
    assert list((store / "tmp").iterdir()) == []


def test_they_are_many_with_codes_of_their_own() -> None:
    assert len(MALFORMED) >= 100
    assert len({case.code for case in MALFORMED}) >= 45


def test_a_config_of_bad_keys_alone_is_refused_briefly(kit, offer, tmp_path) -> None:
    draft = kit.build()
    draft.config |= {f"k{number}": 1 for number in range(50_000)}
    with pytest.raises(CheckpointInvalid) as refused:
        offer(draft.write(tmp_path / "a"))
    assert len(refused.value.problems) == 1000


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, kit) -> Path:
    return kit.build().write(tmp_path_factory.mktemp("good") / "adapter")


flips = st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=4)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from([CONFIG, WEIGHTS]), flips=flips)
def test_flipped_bytes_raise_nothing_but_a_refusal(name, flips, good, offer, tmp_path) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(good, folder, dirs_exist_ok=True)
    content = bytearray((good / name).read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    (folder / name).write_bytes(content)
    with suppress(CheckpointInvalid):
        offer(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.data())
def test_any_value_of_any_key_raises_nothing_but_adapter_errors(
    changes, kit, offer, tmp_path
) -> None:
    draft: Draft = kit.build()
    key = changes.draw(st.sampled_from(sorted(draft.config)))
    draft.config[key] = changes.draw(json_values)
    folder = tmp_path / "changed"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(draft.config))
    (folder / WEIGHTS).write_bytes(encode(draft.tensors))
    with suppress(CheckpointInvalid):
        offer(folder)
