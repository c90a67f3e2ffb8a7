"""For every suite of the catalogue: small data, towers that know everything, and towers that know
nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support import text_folders
from tests.support.color_towers import RandomHead, color_towers
from tests.support.elevater_root import make_elevater_root
from tests.support.fakes import COLORED, FakeTower, TableBackbone, color_of, random_feature
from vlkd_cli import catalog
from vlkd_cli.features.subject import Subject
from vlkd_cli.towers.tower import Tower

CLASSES = 8


class Case(NamedTuple):
    """What a suite is given, and how near to its chance level random towers come."""

    keys: dict[str, Any]
    perfect: Subject
    random: Subject
    error: float
    """About four standard deviations of the primary metric under random towers."""
    best: float = 1.0
    """The primary metric of perfect towers."""
    chance: float | None = None
    """What random towers reach, where the suite cannot know."""


def class_of_picture(position: int) -> Tensor:
    """Shows the class and nothing else."""
    return torch.eye(CLASSES)[position % CLASSES]


def class_of_prompt(text: str) -> Tensor:
    """The class that a prompt ends with; 'kind 3' of 'a photo of a kind 3.'."""
    return torch.eye(CLASSES)[
        int("".join(letter for letter in text.split("kind")[1] if letter.isdigit()))
    ]


def picture_of_caption(text: str) -> Tensor:
    """The feature of the picture that a caption names."""
    return random_feature(32)(int(text.split()[-1]))


def subject(image: Callable[[int], Tensor], text: Callable[[str], Tensor], width: int) -> Subject:
    return Subject(FakeTower("image", image, width), FakeTower("text", text, width))


def knowing_classes() -> Subject:
    return subject(class_of_picture, class_of_prompt, CLASSES)


def knowing_nothing() -> Subject:
    return subject(random_feature(32, 1), random_feature(32, 2), 32)


def labeled(error: float, **keys: Any) -> Case:
    return Case({"data": {"reader": COLORED}, **keys}, knowing_classes(), knowing_nothing(), error)


def zero_shot(folder: Path) -> Case:
    return labeled(0.06)


def linear_probe(folder: Path) -> Case:
    return labeled(0.06, tune=False)


def knn(folder: Path) -> Case:
    return labeled(0.06, k=[20])


def clustering(folder: Path) -> Case:
    return labeled(0.06)


def few_shot(folder: Path) -> Case:
    return labeled(0.06, shots=[1, 5])


def pairs(error: float) -> Case:
    knowing = subject(random_feature(32), picture_of_caption, 32)
    return Case(
        {"data": {"reader": COLORED, "num_samples": 200}}, knowing, knowing_nothing(), error
    )


def retrieval(folder: Path) -> Case:
    return pairs(0.03)


def caption_choice(folder: Path) -> Case:
    items = []
    for number in range(200):
        Image.new("RGB", (8, 8), color_of(number)).save(folder / f"{number}.png")
        others = [f"picture {(number + n) % 200}" for n in (1, 2)]
        items.append(
            {"image": f"{number}.png", "right": f"picture {number}", "wrong": others, "group": "a"}
        )
    (folder / "choices.json").write_text(json.dumps(items))
    return Case(
        {"data": {"reader": "choices", "path": str(folder / "choices.json")}},
        subject(random_feature(32), picture_of_caption, 32),
        knowing_nothing(),
        0.14,
    )


def search(folder: Path) -> Case:
    return labeled(0.06, query="image", index="image")


def feature_analysis(folder: Path) -> Case:
    return pairs(0.06)


def fine_tune(folder: Path) -> Case:
    knowing = Subject(
        Tower("image", TableBackbone(torch.eye(CLASSES).repeat(4096 // CLASSES, 1))), None
    )
    table = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0))
    keys = {"data": {"reader": COLORED, "num_samples": 240}, "epochs": 2, "lr": 0.1}
    return Case(keys, knowing, Subject(Tower("image", TableBackbone(table)), None), 0.09)


def sentences(error: float, **keys: Any) -> Case:
    return Case(keys, text_folders.perfect_subject(), text_folders.random_subject(), error)


def sts(folder: Path) -> Case:
    return sentences(
        0.28, data=str(text_folders.write_sts(folder, pairs=200)), sets=["STS13", "STSB"]
    )


def senteval(folder: Path) -> Case:
    root = text_folders.write_senteval(folder, items=200)
    return sentences(0.15, data=str(root), tasks=["TREC", "SST2"], classifier="sklearn", kfold=2)


def word_similarity(folder: Path) -> Case:
    return sentences(0.28, data=str(text_folders.write_word_similarity(folder, pairs=200)))


def wiki_sections(folder: Path) -> Case:
    return sentences(0.14, data=str(text_folders.write_wiki_sections(folder, triplets=200)))


def passage_retrieval(folder: Path) -> Case:
    return sentences(0.04, data=str(text_folders.write_marco(folder, passages=300, queries=100)))


def captioned(folder: Path) -> Case:
    return sentences(0.14, data=str(text_folders.write_captioned(folder, items=200)))


def mteb(folder: Path) -> Case:
    if catalog.missing_extra("suite", "mteb") is not None:
        pytest.skip("needs the extra 'mteb', which transformers 5 excludes (docs/mteb.md)")
    knowing = subject(random_feature(32), picture_of_caption, 32)
    # Of 40 documents, ten are ranked; the mean of 1 / log2(rank + 1) over 40 ranks, 0 beyond ten.
    return Case(
        {"tasks": ["tests.support.mteb_tasks:ToyImage"]},
        knowing,
        knowing_nothing(),
        0.12,
        chance=0.114,
    )


def elevater(folder: Path) -> Case:
    root = make_elevater_root(folder / "elevater", train=1, test=60)
    random = Subject(*color_towers())
    assert random.image is not None
    random.image = Tower("image", random.image.encoder, head=RandomHead(3))
    keys = {"root": str(root), "datasets": ["toy-colors", "toy-places"]}
    return Case(keys, Subject(*color_towers()), random, 0.15)


SUITE_CASES: dict[str, Callable[[Path], Case]] = {
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "caption_choice": caption_choice,
    "search": search,
    "linear_probe": linear_probe,
    "knn": knn,
    "clustering": clustering,
    "few_shot": few_shot,
    "feature_analysis": feature_analysis,
    "fine_tune": fine_tune,
    "elevater": elevater,
    "sts": sts,
    "senteval": senteval,
    "word_similarity": word_similarity,
    "wiki_sections": wiki_sections,
    "passage_retrieval": passage_retrieval,
    "captioned": captioned,
    "mteb": mteb,
}
"""Suite -> writes its data into a folder, if it needs files, and returns the case. Every suite has
its line here."""
