"""Suite retrieval in many languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.data_sets import multilingual_data
from tests.support.fakes import FakeTower, color_of
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.languages import without_language
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec


def english_only(root: Path) -> Subject:
    """Knows the picture of an English caption, and takes German ones for the next picture's."""
    for number in range(4):
        image = Image.new("RGB", (40, 56), color_of(number))
        image.save(root / "crossmodal3600" / "images" / f"photo{number:02}.jpg", quality=100)

    def of_text(text: str) -> Tensor:
        number = int(text.split()[-1])
        return torch.eye(4)[number if text.startswith("picture") else (number + 1) % 4]

    image_tower = FakeTower("image", lambda position: torch.eye(4)[position], 4)
    return Subject(image_tower, FakeTower("text", of_text, 4), data_root=root)


def measured(subject: Subject, **keys: Any) -> list[Result]:
    given = {"suite": "retrieval", "data": "crossmodal3600", "k": [1], **keys}
    return run_suites(subject, [EvalSpec.model_validate(given)])


def test_each_language_has_a_row_and_the_images_one_pass(tmp_path: Path) -> None:
    multilingual_data(tmp_path / "crossmodal3600")
    subject = english_only(tmp_path)
    found = measured(subject, languages="all")
    assert [(result.dataset, result.metrics["mean_recall"]) for result in found] == [
        ("crossmodal3600/de", 0.0),
        ("crossmodal3600/en", 1.0),
        ("crossmodal3600", 0.5),
    ]
    assert found[2].chance["mean_recall"] == pytest.approx(
        (found[0].chance["mean_recall"] + found[1].chance["mean_recall"]) / 2
    )
    assert isinstance(subject.image, FakeTower) and subject.image.encoded == 4
    assert without_language("crossmodal3600/de") == "crossmodal3600"
    (one,) = measured(subject, languages=["de"])
    (named,) = measured(subject, data="crossmodal3600/de")
    assert one.metrics == named.metrics == found[0].metrics
    assert (one.dataset, named.dataset) == ("crossmodal3600/de", "crossmodal3600/de")
    (english,) = measured(subject)
    assert english.metrics["mean_recall"] == 1


def test_languages_that_are_not_there_end_in_one_line(tmp_path: Path) -> None:
    multilingual_data(tmp_path / "crossmodal3600")
    subject = english_only(tmp_path)
    with pytest.raises(DataError, match="no captions in 'dee'. Did you mean 'de'"):
        measured(subject, languages=["dee"])
    with pytest.raises(DataError, match="needs data in several languages"):
        measured(subject, data={"reader": "shapes", "num_samples": 4}, languages="all")
    with pytest.raises(RecipeError, match="languages is empty"):
        measured(subject, languages=[])
