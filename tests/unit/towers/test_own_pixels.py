"""A tower sees the pixels of its model's own image processor, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.vision_types import write_vit
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

pytestmark = pytest.mark.filterwarnings("ignore")
SIDE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vit(tmp_path_factory.mktemp("vit"))


def build(folder: Path, processor: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    section = {"builder": "huggingface", "modality": "image", "model": str(folder)}
    assemble("image", TowerSpec.model_validate(section))


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        # It crops first, by the ratio of the two sizes, and resizes what is left.
        ({"name": "Perceiver", "crop_size": {"height": 36, "width": 36}}, r"gives \[3, 32, 32\]"),
        ({"name": "Perceiver", "crop_size": SIDE}, "gray levels"),
        # It swaps channels whatever its keys are, and neither rescales nor normalizes.
        ({"name": "LayoutLMv2", "apply_ocr": False}, "gray levels"),
        ({"name": "LayoutLMv2", "apply_ocr": True}, "takes no picture|does not take a picture"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_a_processor_with_rules_of_its_own_is_refused_in_one_line(
    folder: Path, processor: dict[str, Any], reason: str, suffix: str
) -> None:
    kind = {"image_processor_type": f"{processor['name']}ImageProcessor{suffix}"}
    with pytest.raises(RecipeError, match=reason) as error:
        build(folder, {"size": SIDE, **processor, **kind})
    assert str(error.value).startswith("tower 'image'") and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_a_processor_that_only_resizes_is_taken_whatever_its_name(
    folder: Path, suffix: str
) -> None:
    kind = {"image_processor_type": f"PerceiverImageProcessor{suffix}"}
    build(folder, {"size": SIDE, "do_center_crop": False, **kind})
