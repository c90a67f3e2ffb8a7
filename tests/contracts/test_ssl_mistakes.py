"""Mistakes in recipes of self-supervised learning end in one line with file and line, most of them
before torch is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipes import problems
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.errors import UserError

VIT = "config: {patch_size: 8, depth: 1, embed_dim: 32, num_heads: 2, dynamic_img_size: true}"
RECIPE = """\
towers:
  image:
    builder: timm
    model: vit_tiny_patch16_224
    image_size: 32
    {vit}
    masks: {masks}
    heads:
      project: {{name: linear, width: 8{project}}}
{heads}{towers}data:
  reader: {reader}
  augment: {{name: simclr{main}}}
  views: {{b: {{name: simclr}}{views}}}
distillers:
  - {{name: ntxent, student: {student}, teacher: {teacher}}}
{more}train: {{epochs: 2, batch_size: 8}}
optimizer: {{name: sgd, lr: 0.1{optimizer}}}
"""
BASE = {
    "vit": VIT,
    "masks": "none",
    "project": "",
    "heads": "",
    "towers": "",
    "reader": "shapes\n  num_samples: 16\n  size_px: 32\n  workers: 0",
    "main": "",
    "views": "",
    "student": "image.project",
    "teacher": "image.project@b",
    "more": "",
    "optimizer": "",
}


def head(text: str) -> str:
    return f"      {text}\n"


def tower(text: str) -> str:
    return f"  {text}\n"


def distiller(text: str) -> str:
    return f"  - {text}\n"


def text_of(changes: dict[str, str]) -> str:
    assert changes.keys() <= BASE.keys()
    return RECIPE.format(**{**BASE, **changes})


RANDOM, VARYING = "mask: {name: random, share: 0.5}", "mask: {name: block, share: [0.1, 0.5]}"
SECOND = f"{{builder: timm, model: vit_tiny_patch16_224, image_size: SIZE, {VIT}, masks: MASKS}}"
LEARNS_TOO = distiller("{name: koleo, student: image_b}")

CHECKED: list[tuple[str, dict[str, str], str]] = [
    (
        "a cycle of heads",
        {
            "project": ", reads: predict",
            "heads": head("predict: {name: linear, width: 8, reads: project}"),
        },
        "r.yaml:9: towers.image.heads.project.reads: heads read each other in a circle: project"
        " reads predict reads project. Let one read the backbone.",
    ),
    (
        "a head that reads itself",
        {"project": ", reads: project"},
        "r.yaml:9: towers.image.heads.project.reads: tower 'image' has no 'project' to read. A head"
        " does not read itself. Known: input, backbone, tokens.",
    ),
    (
        "unknown reads",
        {"project": ", reads: [backbone, bakbone.1]"},
        "r.yaml:9: towers.image.heads.project.reads: tower 'image' has no 'bakbone' to read. Did"
        " you mean 'backbone'? Known: input, backbone, tokens.",
    ),
    (
        "a head that reads nothing",
        {"project": ", reads: []"},
        "r.yaml:9: towers.image.heads.project.reads: expected text or a list of text, got [].",
    ),
    (
        "a head that joins rows and positions",
        {"project": ", reads: [backbone, tokens]"},
        "r.yaml:9: towers.image.heads.project.reads: joins 'backbone' (rows) and 'tokens'"
        " (positions), which have different lengths. Read outputs of one kind.",
    ),
    (
        "an unread head",
        {"heads": head("other: {name: linear, width: 8}")},
        "r.yaml:10: towers.image.heads.other: nothing reads it. Write 'image.other' in a"
        " distiller, or remove it.",
    ),
    (
        "a picture beyond the copies",
        {"student": "image.project@main.3", "main": ", copies: 2"},
        "r.yaml:18: distillers[0].student: view 'main' has 2 pictures, and"
        " 'image.project@main.3' is beyond. Set copies: 3 there, or write a number up to 2.",
    ),
    (
        "pictures of a range beyond the copies",
        {"student": "image.project@main.1-5", "main": ", copies: 2", "teacher": "image.project@b"},
        "r.yaml:18: distillers[0].student: view 'main' has 2 pictures, and"
        " 'image.project@main.5' is beyond. Set copies: 5 there, or write a number up to 2.",
    ),
    (
        "a head that reads a picture beyond the copies",
        {"project": ", reads: [backbone, backbone.4]", "main": ", copies: 2"},
        "r.yaml:9: towers.image.heads.project.reads: 'backbone.4' is beyond the 2 pictures of view"
        " 'main'.",
    ),
    (
        "lists of unlike length",
        {
            "student": "[image.project, image.project@b]",
            "teacher": "[image.project@b, image.project, image.project@b]",
        },
        "r.yaml:18: distillers[0].teacher: 2 students and 3 teachers do not pair up. Give one"
        " teacher for each student, or one for all.",
    ),
    (
        "masks without a mask",
        {"masks": "replace"},
        "r.yaml:7: towers.image.masks: has no effect: no view that the tower reads has a mask.",
    ),
    (
        "a mask without masks",
        {"main": f", {RANDOM}"},
        "r.yaml:15: data.augment.mask: no tower uses it. Set `masks:` of a tower that reads this"
        " view, or `at:` of one of its heads.",
    ),
    (
        "drop with a varying count",
        {"masks": "drop", "main": f", {VARYING}"},
        "r.yaml:7: towers.image.masks: 'drop' needs a mask that hides the same number of positions"
        " in every picture; that of view 'main' varies. Set masks: replace, or give the mask a"
        " fixed number.",
    ),
    (
        "complement with a varying count",
        {
            "masks": "replace",
            "main": f", {VARYING}",
            "towers": tower("image_key: {follows: image, masks: complement}"),
            "more": distiller("{name: simreg, student: image.project, teacher: image_key.project}"),
        },
        "r.yaml:10: towers.image_key.masks: 'complement' needs a mask that hides the same number of"
        " positions in every picture; that of view 'main' varies. Set masks: replace, or give the"
        " mask a fixed number.",
    ),
    (
        "tokens with cache: true",
        {
            "towers": tower(
                f"image_b: {{builder: timm, model: vit_tiny_patch16_224, image_size: 32, {VIT},"
                " train: none, cache: true}"
            ),
            "more": distiller("{name: regress, student: image.tokens, teacher: image_b.tokens}"),
        },
        "r.yaml:10: towers.image_b.cache: 'image_b.tokens' reads tokens, but one feature of each"
        " sample is cached: tokens are a row for each patch, here 16 patches of 32 values, 2.05 kB"
        " an image. Remove cache, or read the backbone.",
    ),
    (
        "captions of an image-only reader",
        {
            "reader": "images\n  path: photos",
            "towers": tower("text: {builder: openclip, config: {layers: 1, width: 8, heads: 1}}"),
            "more": distiller("{name: infonce, student: image.project, teacher: text}"),
        },
        "r.yaml:12: data.reader: reader 'images' has no captions with these keys, and tower 'text'"
        " reads them. Take another reader.",
    ),
    (
        "a group that sets nothing",
        {"optimizer": ', groups: [{match: ["image.heads.*"]}]'},
        "r.yaml:20: optimizer.groups[0]: has no effect: it sets nothing for what it matches. Remove"
        " it.",
    ),
    (
        "a start beyond the run",
        {"optimizer": ', groups: [{match: ["image.*"], from: {epochs: 2}}]'},
        "r.yaml:20: optimizer.groups[0].from: is never reached: the run has 2 epochs, counted"
        " from 0.",
    ),
    (
        "the whole bank as negatives of an estimator that samples them",
        {"more": distiller("{name: npid, student: image.project, num_negatives: null}")},
        "r.yaml:19: distillers[1].num_negatives: null does not go with estimator: nce. Change one"
        " of them.",
    ),
    (
        "codes of a picture that is not the student's first",
        {
            "more": distiller(
                "{name: swav, student: [image.project, image.project@b], teacher: image.project@b}"
            )
        },
        "r.yaml:19: distillers[1].teacher: distiller 'swav' compares each picture with the others"
        " only, so the student lists two or more pictures, and the teacher the first of them in the"
        " same order.",
    ),
    (
        "samples of another width than the bank's",
        {
            "heads": head("other: {name: linear, width: 6}"),
            "more": distiller("{name: odc, student: image.project, teacher: image.other@b}"),
        },
        "r.yaml:20: distillers[1]: 'image.other@b' embeds 6 values, 'image.project' 8, and"
        " distiller 'odc' compares them directly. Set `width: 6` in head 'project' of 'image'.",
    ),
    (
        "more classes than pictures",
        {"more": distiller("{name: view_order, student: [image.project, image.project@b]}")},
        "r.yaml:19: distillers[1].student: distiller 'view_order' classifies 2 pictures, and"
        " 'image.project' embeds 8 values. Set `width: 2` in head 'project' of 'image'.",
    ),
    (
        "crops whose scale runs backwards",
        {"main": ", scale: [1.0, 0.2]"},
        "r.yaml:15: data.augment.scale: [1, 0.2] runs backwards: write the lower first.",
    ),
    (
        "crops of no area",
        {"main": ", scale: [0, 1.0]"},
        "r.yaml:15: data.augment.scale: expected a list of 2: a number above 0 and of at most 1, a"
        " number above 0 and of at most 1, got [0, 1.0].",
    ),
    (
        "a mask that hides nothing",
        {"masks": "replace", "main": ", mask: {name: random, share: 0}"},
        "r.yaml:15: data.augment.mask.share: expected a number above 0 and below 1, got 0.",
    ),
    (
        "a view that nothing reads",
        {"views": ", c: {name: simclr}"},
        "r.yaml:16: data.views.c: nothing reads it. Write TOWER@c in a distiller, or remove it.",
    ),
    (
        "an augmentation of a view that nothing reads",
        {"student": "image.project@b"},
        "r.yaml:15: data.augment: has no effect: no distiller reads pictures of the view 'main'."
        " Remove it.",
    ),
    (
        "positions of a head that has none",
        {"project": ", at: hidden", "masks": "replace", "main": f", {RANDOM}"},
        "r.yaml:9: towers.image.heads.project.at: has no effect on rows. Let the head read tokens"
        " or input.",
    ),
    (
        "heads of a follower",
        {
            "towers": tower("image_key: {follows: image, heads: {x: {name: linear, width: 8}}}"),
            "more": distiller("{name: simreg, student: image.project, teacher: image_key.project}"),
        },
        "r.yaml:10: towers.image_key.heads: has no effect on a tower that follows another. Set it"
        " on 'image'.",
    ),
    (
        "shuffle of a tower that follows none",
        {
            "towers": tower(
                "image_b: {builder: torchvision, model: resnet18, image_size: 32, shuffle: true}"
            ),
            "more": LEARNS_TOO,
        },
        "r.yaml:10: towers.image_b.shuffle: has no effect without `follows:`.",
    ),
]


@pytest.mark.parametrize(
    ("changes", "line"), [each[1:] for each in CHECKED], ids=[each[0] for each in CHECKED]
)
def test_a_mistake_that_the_recipe_shows_is_one_line(changes, line):
    text = text_of(changes)
    assert line in problems(text)
    # Lists of problems name each mistake once; some mistakes come with a second one.
    assert len(problems(text)) <= 1 + ("circle" in line)


def test_the_recipe_without_a_mistake_is_fine():
    assert problems(text_of({})) == []
    # The first group has an effect: the second one does not get what it matches.
    groups = ', groups: [{match: ["*.bias"]}, {match: ["image.*"], lr_factor: 0.1}]'
    assert problems(text_of({"optimizer": groups})) == []
    # Other features may be clustered than those that are classified.
    heads = {"heads": head("other: {name: linear, width: 6}")}
    line = distiller("{name: deepcluster, student: image.project, teacher: image.other@b}")
    assert problems(text_of({**heads, "more": line})) == []


def second(size: int, masks: str) -> str:
    return tower(f"image_b: {SECOND.replace('SIZE', str(size)).replace('MASKS', masks)}")


BUILT: list[tuple[str, dict[str, str], str]] = [
    (
        "two grids under one mask",
        {
            "masks": "replace",
            "main": f", {RANDOM}",
            "towers": second(64, "replace"),
            "more": LEARNS_TOO,
        },
        "r.yaml:16: data.augment.mask: tower 'image' has 4 x 4 positions and tower 'image_b' 8 x 8,"
        " and one mask cannot serve both. Give them images or patches of other sizes, or views of"
        " their own.",
    ),
    (
        "units off the grid",
        {"masks": "replace", "main": ", mask: {name: random, share: 0.5, unit_px: 12}"},
        "r.yaml:15: data.augment.mask: unit_px 12 does not fit a grid of 4 x 4 positions of 8 px;"
        " it must be a multiple of 8 that divides 32.",
    ),
    (
        "masks that a network cannot do",
        {
            "masks": "replace",
            "main": f", {RANDOM}",
            "towers": tower(
                "image_b: {builder: torchvision, model: resnet18, image_size: 32, masks: replace}"
            ),
            "more": LEARNS_TOO,
        },
        "r.yaml:10: tower 'image_b': masks: replace: builder 'torchvision', model 'resnet18' cannot"
        " hide positions in this way. It needs a vision transformer (for replace, Swin too).",
    ),
    (
        "a pattern without a match",
        {"optimizer": ', groups: [{match: ["image.heads.predict.*"], lr_factor: 0.1}]'},
        "r.yaml:20: optimizer.groups[0].match[0]: 'image.heads.predict.*' matches no trainable"
        " parameter. They are named like image.heads.project.linear.weight.",
    ),
    (
        "a pattern whose matches are taken",
        {
            "optimizer": ', groups: [{match: ["image.*"], lr_factor: 0.1},'
            ' {match: ["image.heads.*"], lr_factor: 0.2}]'
        },
        "r.yaml:20: optimizer.groups[1].match[0]: 'image.heads.*' matches only parameters that an"
        " earlier group has matched. Put it before that one.",
    ),
    (
        "a start in steps beyond the run",
        {"optimizer": ', groups: [{match: ["image.*"], from: {steps: 40}}]'},
        "r.yaml:20: optimizer.groups[0].from: step 40 is beyond the run of 4 steps. Start earlier,"
        " or freeze these parameters with `train:` of their tower.",
    ),
    (
        "a size that a tower refuses",
        {
            "views": ", c: {name: simclr, size_px: 33}",
            "student": "[image.project, image.project@c]",
            "teacher": "[image.project@b, image.project@b]",
        },
        "r.yaml:16: data.views.c: tower 'image': it does not take pictures of 33 x 33 pixels (Input"
        " height (33) should be divisible by patch size (8).). Change data.views.c.size_px.",
    ),
]


@pytest.mark.parametrize(
    ("changes", "line"), [each[1:] for each in BUILT], ids=[each[0] for each in BUILT]
)
def test_a_mistake_that_only_building_shows_is_one_line_before_the_first_step(
    changes, line, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    Path("r.yaml").write_text(text_of(changes), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        start_training(TrainRequest(recipe="r.yaml", dry_run=True, quiet=True))
    assert str(raised.value) == line
