"""Heads that read each other, or what is not there, or that nothing reads; masks and caches."""

from __future__ import annotations

import pytest

from tests.support.recipes import problems

PROJECT = "project: {name: linear, width: 8}"


def lines(
    heads: str,
    student: str = "image.project",
    *,
    tower: str = "",
    augment: str = "{name: simclr}",
    more: str = "",
) -> list[str]:
    teacher = student.replace("image", "image_key")
    return problems(
        "towers:\n"
        f"  image: {{builder: timm, model: vit_tiny_patch16_224{tower}, heads: {{{heads}}}}}\n"
        "  image_key: {follows: image}\n"
        "distillers:\n"
        f"  - {{name: simreg, student: {student}, teacher: {teacher}}}\n"
        f"data: {{reader: shapes, augment: {augment}}}\n{more}"
    )


@pytest.mark.parametrize(
    "heads",
    [
        PROJECT,
        f"{PROJECT[:-1]}, reads: other}}, other: {{name: mlp, width: 4}}",
        f"{PROJECT[:-1]}, reads: [backbone, other]}}, other: {{name: mlp, width: 4}}",
        f"{PROJECT[:-1]}, reads: tokens}}",
        f"{PROJECT[:-1]}, reads: backbone.1}}",
    ],
)
def test_heads_that_read_what_there_is_are_fine(heads: str) -> None:
    assert lines(heads) == []


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (
            f"{PROJECT[:-1]}, reads: backbon}}",
            "project.reads: tower 'image' has no 'backbon' to read. Did you mean 'backbone'? Known:"
            " input, backbone, tokens.",
        ),
        (
            f"{PROJECT[:-1]}, reads: project}}",
            "project.reads: tower 'image' has no 'project' to read. A head does not read itself.",
        ),
        (
            f"{PROJECT[:-1]}, reads: a}}, a: {{name: linear, width: 4, reads: project}}",
            "project.reads: heads read each other in a circle: project reads a reads project. Let"
            " one read the backbone.",
        ),
        (
            f"{PROJECT}, other: {{name: linear, width: 4}}",
            "other: nothing reads it. Write 'image.other' in a distiller, or remove it.",
        ),
        (
            f"{PROJECT}, tokens: {{name: linear, width: 4}}",
            "tokens: a head's name is made of letters, digits and underscores and is none of main,"
            " input, backbone, tokens, layers.",
        ),
        (
            f"{PROJECT[:-1]}, reads: backbone.0}}",
            "project.reads: pictures count from 1: write backbone.1 for the first.",
        ),
        (
            f"{PROJECT[:-1]}, reads: [backbone, backbone.2]}}",
            "project.reads: 'backbone.2' is beyond the 1 picture of view 'main'.",
        ),
        (
            f"{PROJECT[:-1]}, at: hidden}}",
            "project.at: has no effect on rows. Let the head read tokens or input.",
        ),
        (
            f"{PROJECT[:-1]}, reads: tokens, at: hidden}}",
            "project.at: no view that tower 'image' reads has a mask. Add `mask:` to it.",
        ),
    ],
)
def test_a_head_that_cannot_be_is_one_line(heads: str, expected: str) -> None:
    (line,) = lines(heads)
    assert line.startswith(f"r.yaml:2: towers.image.heads.{expected}")


def test_the_head_called_head_is_read_by_suites() -> None:
    heads = f"{PROJECT}, head: {{name: linear, width: 4}}"
    assert lines(heads) == [
        "r.yaml:2: towers.image.heads.head: nothing reads it. Write 'image' in a distiller, or"
        " remove it."
    ]
    assert lines(heads, more="evals: [{suite: knn, data: {reader: shapes}}]\n") == []


def test_one_head_is_not_written_twice() -> None:
    (line,) = lines(
        f"{PROJECT}, head: {{name: linear, width: 4}}",
        tower=", head: {name: linear, width: 4}",
        more="evals: [{suite: knn, data: {reader: shapes}}]\n",
    )
    assert "heads.head: is written twice: here and as `head:`. Remove one." in line


def test_a_followed_tower_s_head_is_read_by_the_follower_s_address() -> None:
    heads = f"{PROJECT}, other: {{name: linear, width: 8}}"
    assert len(lines(heads)) == 1, "nothing reads it"
    text = "  - {name: simreg, student: image.project, teacher: image_key.other}\n"
    assert (
        problems(
            "towers:\n"
            f"  image: {{builder: timm, model: vit_tiny_patch16_224, heads: {{{heads}}}}}\n"
            f"  image_key: {{follows: image}}\ndistillers:\n{text}data: {{reader: shapes}}\n"
        )
        == []
    )


def test_heads_with_weights_of_a_frozen_tower_keep_them_random() -> None:
    found = problems(
        "towers:\n"
        f"  image: {{builder: timm, model: resnet10t, train: none, heads: {{{PROJECT}}}}}\n"
        "  text: {builder: openclip, config: {layers: 2, width: 64, heads: 2}}\n"
        "distillers:\n  - {name: simreg, student: text, teacher: image.project}\n"
        "data: {reader: shapes}\n"
    )
    assert found == [
        "r.yaml:2: towers.image.heads.project: would keep its random weights: the tower is frozen"
        " (train: none). Set train: head, or remove the head."
    ]


def test_heads_of_a_follower_are_refused() -> None:
    (line,) = problems(
        "towers:\n"
        "  image: {builder: timm, model: vit_tiny_patch16_224}\n"
        f"  image_key: {{follows: image, heads: {{{PROJECT}}}}}\n"
        "distillers:\n  - {name: simreg, student: image, teacher: image_key}\n"
        "data: {reader: shapes}\n"
    )
    assert line == (
        "r.yaml:3: towers.image_key.heads: has no effect on a tower that follows another. Set it on"
        " 'image'."
    )


def test_masks_need_a_view_with_a_mask() -> None:
    assert lines(PROJECT, tower=", masks: replace") == [
        "r.yaml:2: towers.image.masks: has no effect: no view that the tower reads has a mask."
    ]


@pytest.mark.parametrize(
    ("output", "augment", "expected"),
    [
        ("backbone", "{name: none}", None),
        (
            "backbone",
            "{name: simclr}",
            "cached features of images that are augmented at random would be wrong from the second"
            " epoch on. Set data.augment: {name: none}, cache: {draws: K} for K augmentations of"
            " each image, or cache: false.",
        ),
        (
            "backbone",
            "{name: none, copies: 2}",
            "view 'main' has several pictures, but one feature of each sample is cached.",
        ),
        (
            "tokens",
            "{name: none}",
            "'image.tokens' reads tokens, but one feature of each sample is cached: tokens are a"
            " row for each patch, here 196 patches of 192 values, 151 kB an image. Remove cache, or"
            " read the backbone.",
        ),
    ],
)
def test_only_one_feature_of_each_sample_is_cached(
    output: str, augment: str, expected: str | None
) -> None:
    found = problems(
        "towers:\n"
        "  image: {builder: timm, model: vit_tiny_patch16_224, train: none, cache: true}\n"
        "  image_b: {builder: timm, model: vit_tiny_patch16_224}\n"
        "distillers:\n"
        f"  - {{name: simreg, student: image_b.{output}, teacher: image.{output}}}\n"
        f"data: {{reader: shapes, augment: {augment}}}\n"
    )
    assert found == ([] if expected is None else [f"r.yaml:2: towers.image.cache: {expected}"])


MASKED = "{name: simclr, mask: {name: random}}"


def test_a_mask_that_a_tower_uses_is_fine() -> None:
    drops = ", masks: drop"
    assert lines(PROJECT, tower=drops, augment=MASKED) == []
    varies = "{name: simclr, mask: {name: block, share: [0.1, 0.5]}}"
    assert lines(PROJECT, tower=", masks: replace", augment=varies) == []
    hidden = f"{PROJECT[:-1]}, reads: tokens, at: hidden}}"
    assert lines(hidden, augment=MASKED) == []


@pytest.mark.parametrize("masks", ["drop", "complement"])
def test_a_mask_of_varying_count_cannot_be_dropped(masks: str) -> None:
    varies = "{name: simclr, mask: {name: block, share: [0.1, 0.5]}}"
    assert lines(PROJECT, tower=f", masks: {masks}", augment=varies) == [
        f"r.yaml:2: towers.image.masks: '{masks}' needs a mask that hides the same number of"
        " positions in every picture; that of view 'main' varies. Set masks: replace, or give the"
        " mask a fixed number."
    ]


def test_a_mask_that_no_tower_uses_is_refused() -> None:
    assert lines(PROJECT, augment=MASKED) == [
        "r.yaml:6: data.augment.mask: no tower uses it. Set `masks:` of a tower that reads this"
        " view, or `at:` of one of its heads."
    ]
