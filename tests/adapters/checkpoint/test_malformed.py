"""Every malformed adapter is refused by its own code, quickly, and leaves nothing behind."""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from adapter_files import CONFIG, WEIGHTS, Draft, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import MALFORMED, Malformed

from adapters.errors import CheckpointInvalid
from adapters.publish import publish


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.title.replace(" ", "-"))
def test_it_is_refused_by_its_own_code(
    case: Malformed, kit, base_folder: Path, tmp_path: Path
) -> None:
    folder, store = kit.build().write(tmp_path / "adapter"), tmp_path / "store"
    case.make(folder)
    began = time.perf_counter()
    with pytest.raises(CheckpointInvalid) as refused:
        publish(str(folder), name="bad", store=store, base=base_folder)
    assert time.perf_counter() - began < 2
    found = {problem.code for problem in refused.value.problems}
    assert case.code in found
    assert found == {case.code} or not case.alone
    assert all(p.where and p.message and p.fix for p in refused.value.problems)
    assert {path.name for path in store.rglob("*")} == {"lock", "tmp"}


def test_they_are_many_and_told_apart() -> None:
    assert len(MALFORMED) >= 100
    assert len({case.code for case in MALFORMED}) >= 45


def test_a_config_of_bad_keys_alone_is_answered_shortly(kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.config |= {f"k{number}": 1 for number in range(50_000)}
    with pytest.raises(CheckpointInvalid) as refused:
        publish(draft.write(tmp_path / "a"), name="a", store=tmp_path / "s", base=base_folder)
    assert len(refused.value.problems) == 1000


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, kit) -> Path:
    return kit.build().write(tmp_path_factory.mktemp("good") / "adapter")


flips = st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=4)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from([CONFIG, WEIGHTS]), flips=flips)
def test_flipped_bytes_raise_nothing_but_a_refusal(
    name, flips, good, base_folder, tmp_path
) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(good, folder, dirs_exist_ok=True)
    content = bytearray((good / name).read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    (folder / name).write_bytes(content)
    with suppress(CheckpointInvalid):
        publish(folder, name="flipped", store=tmp_path / "store", base=base_folder)


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
    changes, kit, base_folder, tmp_path
) -> None:
    draft: Draft = kit.build()
    key = changes.draw(st.sampled_from(sorted(draft.config)))
    draft.config[key] = changes.draw(json_values)
    folder = tmp_path / "changed"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(draft.config))
    (folder / WEIGHTS).write_bytes(encode(draft.tensors))
    with suppress(CheckpointInvalid):
        publish(folder, name="changed", store=tmp_path / "store", base=base_folder)
