"""Each family of bases is trained in NF4, on all its layers, and what comes out is published."""

import json
from pathlib import Path

import pytest
from bases import FAMILIES, build
from publishing import publish

from adapters.checkpoint.base import read_base
from training.progress import Control
from training.recipe import Recipe
from training.run import train

QUICK = {"phi3", "qwen3_moe"}


@pytest.mark.filterwarnings("default")  # of transformers
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_an_adapter_of_each_family_is_trained_on_all_linears_and_published(
    family: str, tiny_base: Path, chat_set: Path, tmp_path: Path
) -> None:
    base = build(FAMILIES[family], tmp_path / "base", tiny_base)
    recipe = Recipe.model_validate(
        {
            "name": "two",
            "base": str(base),
            "base_name": "base",
            "data": {"train": chat_set},
            "lora": {"rank": 4},
            "optimization": {
                "max_steps": 2,
                "batch_size": 2,
                "warmup_steps": 0,
                "learning_rate": 1e-2,
            },
        }
    )
    trained = train(recipe, tmp_path / "out", Control(lambda line: None))
    version = publish(trained.folder, name="two", store=tmp_path / "store", base=base)
    linears = {name.rpartition(".")[2] for name in read_base(base).linears}
    config = json.loads((trained.folder / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == linears
    assert version.provenance is not None
    assert "publish_warnings" not in version.provenance
