"""What `cache: {draws: K}` needs of a recipe, reported without torch."""

from __future__ import annotations

import pytest

from tests.support.recipes import problems

TWO_TEACHERS = """\
towers:
  image: {builder: torchvision, model: resnet18}
  text: {builder: openclip, config: {layers: 2, width: 64, heads: 2}}
  teacher_image: {builder: torchvision, model: resnet18, train: none, cache: {draws: 2}}
  other_image: {builder: torchvision, model: resnet18, train: none}
distillers:
  - {name: infonce, student: image, teacher: text}
  - {name: simreg, student: image, teacher: teacher_image}
  - {name: simreg, student: image, teacher: other_image}
data: {reader: shapes}
"""


def test_draws_of_a_frozen_tower_are_fine() -> None:
    same = ["towers.other_image.cache={draws: 2}"]
    assert problems(TWO_TEACHERS) == problems(TWO_TEACHERS, same) == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "towers.teacher_image.train=all",
            "draws are for frozen towers. Set train: none, or remove cache.",
        ),
        (
            "towers.image.cache={draws: 2}",
            "draws are for frozen towers. Set train: none, or remove cache.",
        ),
        (
            "data={reader: webdataset, path: x.tar, stream: true, samples_per_epoch: 8}",
            "reader 'webdataset' streams here: samples have no index to cache features by.",
        ),
        (
            "towers.teacher_image.masks=drop",
            "masks: drop changes what it encodes. Remove cache, or masks.",
        ),
        (
            "data.augment={name: none}",
            "2 draws have no effect: the images that this tower reads are not augmented at random.",
        ),
        (
            "towers.other_image.cache={draws: 3}",
            "is 3, and that of tower 'teacher_image' is 2: one number holds for all towers of a"
            " run. Set both to 2.",
        ),
        (
            "towers.other_image.cache={draws: 2, seed: 1}",
            "is 1, and that of tower 'teacher_image' is 0: one number holds for all towers of a"
            " run. Set both to 0.",
        ),
        (
            "towers.teacher_image.cache={draws: 2, store: false, dtype: bfloat16}",
            "towers.teacher_image.cache.dtype: has no effect with store: false.",
        ),
        ("towers.other_image.cache={draws: 2, dtype: fp16}", "expected true or false, a mapping"),
        ("towers.other_image.cache={draws: 0}", "expected true or false, a mapping with draws"),
        ("towers.other_image.cache={draw: 2}", "expected true or false, a mapping with draws"),
        (
            "towers.other_image={follows: image, cache: {draws: 2}}",
            "has no effect on a tower that follows another. Set it on 'image'.",
        ),
    ],
)
def test_draws_without_effect_or_meaning_are_one_line(override: str, expected: str) -> None:
    assert any(expected in line for line in problems(TWO_TEACHERS, [override]))


def test_a_pooled_inner_layer_can_be_stored_and_places_are_too_many() -> None:
    inner = TWO_TEACHERS.replace(
        "simreg, student: image, teacher: teacher_image",
        "layer_distance, student: image.layers.2.pooled, teacher: teacher_image.layers.2.pooled",
    )
    assert problems(inner) == []
    once = ["data.augment={name: none}", "towers.teacher_image.cache=true"]
    assert any("reads layers.2.pooled" in line for line in problems(inner, once))
    places = problems(inner.replace(".pooled", ""))
    assert any("'teacher_image.layers.2' reads layers.2" in line for line in places)
    text = TWO_TEACHERS.replace(
        "simreg, student: image, teacher: teacher_image",
        "simreg, student: image.tokens, teacher: teacher_image.tokens",
    )
    assert any("'teacher_image.tokens' reads tokens" in line for line in problems(text))
