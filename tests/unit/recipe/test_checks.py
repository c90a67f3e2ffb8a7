"""Impossible combinations, and settings without effect."""

from __future__ import annotations

import sys

import pytest

from tests.support.recipes import SMALL, problems, problems_with
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import parse_recipe

TEACHERS = (
    "towers.teacher_image={builder: torchvision, model: resnet18, train: none}",
    "towers.teacher_text={builder: openclip, model: RN50, train: none}",
)


def test_the_small_recipe_is_right():
    assert problems() == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["towers.image.momentum=0.9"], ["has no effect without `follows:`."]),
        (
            ["towers.key={follows: image, momentum: {cosine: [0.9, 1.1]}}"],
            [
                "towers.key.momentum: is the fraction of the average that stays after a step, from"
                " 0 to 1, got 0.9, 1.1."
            ],
        ),
        (["towers.image.tower=text"], ["has no effect without `run:`."]),
        (
            ["towers.image={biulder: torchvision}"],
            [
                "towers.image.biulder: unknown key. Did you mean 'builder'? "
                "Accepted: builder, run, follows."
            ],
        ),
        (
            ["towers.image={model: resnet18}"],
            ["name where the tower comes from: `builder:`, `run:` or `follows:`."],
        ),
        (
            ["towers.image.run=runs/x"],
            ["a tower has one source, but this one has builder and run. Remove one."],
        ),
        (
            ["towers.image={run: runs/x, pooler: {name: mean}}"],
            ["towers.image.pooler: a tower of a run comes as it was trained there. Remove it."],
        ),
        (
            ["towers.second={builder: openclip, model: RN50, train: none}"],
            [
                "set `modality: image` or `modality: text`; the tower's name and builder do not"
                " determine it."
            ],
        ),
    ],
)
def test_where_a_tower_comes_from(options, expected):
    assert problems_with(*options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["towers.text.train=none", "towers.text.lr=1e-3"],
            "has no effect: the tower is frozen (train: none).",
        ),
        (
            ["towers.text.train=none", "towers.text.layer_decay=0.5"],
            "has no effect: the tower is frozen (train: none).",
        ),
        (
            ["towers.text.train=none", "towers.text.head={name: linear, width: 8}"],
            (
                "would keep its random weights: the tower is frozen (train: none). Set train: head,"
                " or remove the head."
            ),
        ),
        (
            ["towers.text.train=head"],
            (
                "'head' leaves nothing to train: the tower has no head. Add `head: {name:"
                " linear, ...}`."
            ),
        ),
        (
            [
                "towers.text.head={name: linear, width: 8}",
                "towers.text.train=head",
                "towers.text.layer_decay=0.5",
            ],
            "has no effect: only the head is trained (train: head).",
        ),
        (
            ["towers.text.train=prompt"],
            (
                "'prompt' leaves nothing to train: the tower has no prompt. Add `prompt:"
                " {tokens: 4}`."
            ),
        ),
        *(
            (
                [*frozen, "towers.image.freeze_batch_norm_stats=true"],
                (
                    "has no effect: the backbone is frozen, and the statistics of its batch norms"
                    " with it. Remove it."
                ),
            )
            for frozen in (
                ["towers.image.train=none"],
                ["towers.image.head={name: linear, width: 8}", "towers.image.train=head"],
                ["towers.image.head={name: linear, width: 8}", "towers.image.train=[head.*]"],
                ["towers.image.adapter={name: lora}"],
            )
        ),
        (
            ["towers.text.train=[]"],
            "an empty list of patterns leaves nothing to train. Write none.",
        ),
        (
            ["towers.text.cache=true"],
            (
                "the tower's features change while its backbone is trained. Remove cache, or set"
                " train: none (or head)."
            ),
        ),
        (
            ["towers.image.train=none", "towers.image.cache=true"],
            (
                "cached features of images that are augmented at random would be wrong from the"
                " second epoch on. Set data.augment: {name: none}, cache: {draws: K} for K"
                " augmentations of each image, or cache: false."
            ),
        ),
        (
            [
                "towers.text.train=none",
                "towers.text.cache=true",
                "data={reader: webdataset, path: x.tar, stream: true, samples_per_epoch: 8}",
            ],
            (
                "reader 'webdataset' streams here: samples have no index to cache features by."
                " Remove cache, or read without streaming."
            ),
        ),
    ],
)
def test_caches_that_cannot_work_are_refused(options, expected):
    assert problems_with(*options) == [expected]


def test_a_cache_without_random_augmentation_is_fine():
    assert (
        problems_with(
            "towers.image.train=none", "towers.image.cache=true", "data.augment={name: none}"
        )
        == []
    )


def test_a_default_written_out_is_accepted():
    assert problems_with("towers.image.momentum=0.999", "data.workers=0", "data.prefetch=2") == []


@pytest.mark.parametrize(
    ("follower", "expected"),
    [
        (
            "{follows: imag}",
            "follows: no other tower 'imag'. Did you mean 'image'? Towers: image, text.",
        ),
        ("{follows: ema}", "follows: no other tower 'ema'. Towers: image, text."),
        (
            "{follows: image, lr: 0.1}",
            "lr: has no effect on a tower that follows another. Set it on 'image'.",
        ),
        (
            "{follows: image, freeze_batch_norm_stats: true}",
            "freeze_batch_norm_stats: has no effect on a tower that follows another. Set it on"
            " 'image'.",
        ),
        (
            "{follows: image, train: head}",
            "train: has no effect on a tower that follows another: it only ever follows.",
        ),
        ("{follows: image, model: x}", None),
    ],
)
def test_followers(follower, expected):
    (line,) = problems_with(f"towers.ema={follower}")
    assert expected is None or line == f"towers.ema.{expected}"


def test_a_follower_of_a_frozen_tower_follows_nothing():
    (line,) = problems_with("towers.text.train=none", "towers.ema={follows: text}")
    assert (
        line
        == "towers.ema.follows: 'text' is frozen, so there is nothing to follow. Use 'text' itself."
    )


@pytest.mark.parametrize(
    ("distiller", "expected"),
    [
        (
            "{name: infonce, student: imag}",
            "student: no tower 'imag'. Did you mean 'image'? Towers: image, text.",
        ),
        (
            "{name: infonce, teacher: text@second}",
            "teacher: no view 'second'. Name it under data.views.",
        ),
        (
            "{name: infonce, teacher: text.tail}",
            "teacher: tower 'text' has no output 'tail'. Outputs: backbone, tokens, head.",
        ),
        (
            "{name: infonce, teacher: text@}",
            (
                "teacher: 'text@' is not an address. Write tower, tower.backbone, tower.tokens,"
                " tower.layers.N, tower.layers.N.pooled or tower.HEAD, then @VIEW or"
                " @TEXT for another input, @VIEW.2 or @VIEW.2-5 for some of its pictures."
            ),
        ),
        ("{name: infonce, student: [image, text]}", "teacher: name the teacher tower."),
        (
            "{name: infonce, student: [image, text], teacher: [text, image, text]}",
            (
                "teacher: 2 students and 3 teachers do not pair up. Give one teacher for each"
                " student, or one for all."
            ),
        ),
        ("{name: affinity, student: image}", None),
        (
            "{name: affinity}",
            (
                "teacher: by default teacher_image and teacher_text, but the recipe has no tower"
                " 'teacher_image'."
            ),
        ),
    ],
)
def test_addresses(distiller, expected):
    lines = problems(SMALL.replace("{name: infonce}", distiller))
    assert expected is None or lines == [f"r.yaml:5: distillers[0].{expected}"]
    assert lines


HEAD = "towers.{}.head={{name: {}, {}: {}}}"


@pytest.mark.parametrize(
    ("heads", "distiller", "expected"),
    [
        (
            [HEAD.format("image", "linear", "width", 16), HEAD.format("text", "mlp", "width", 24)],
            "{name: simreg}",
            (
                "distillers[0]: tower 'text' embeds 24 values, tower 'image' 16, and distiller"
                " 'simreg' compares them directly. Set `width: 24` in the head of 'image'."
            ),
        ),
        (
            [
                HEAD.format("image", "prototypes", "num_prototypes", 20),
                HEAD.format("text", "prototypes", "num_prototypes", 30),
            ],
            "{name: dino, num_prototypes: null}",
            (
                "distillers[0]: tower 'text' embeds 30 values, tower 'image' 20, and distiller"
                " 'dino' compares them directly. Set `num_prototypes: 30` in the head of 'image'."
            ),
        ),
        (
            [
                HEAD.format("image", "prototypes", "num_prototypes", 20),
                HEAD.format("text", "prototypes", "num_prototypes", 20),
            ],
            "{name: protocpc}",
            (
                "distillers[0].num_prototypes: tower 'image' has prototypes of its own. Set"
                " num_prototypes: null, or give the towers head 'mlp'."
            ),
        ),
        (
            [],
            "{name: compress, teacher: [text, text]}",
            "distiller 'compress' takes one address here, got 2.",
        ),
        (
            [],
            "{name: compress, student: [image, image, image]}",
            "distiller 'compress' takes one address or 2 addresses here, got 3.",
        ),
        ([], "{name: dino, teacher_temperature: 0}", "expected a number above 0 or a schedule"),
        (
            [],
            "{name: dino, teacher_temperature: {linear: [0.04, 0]}}",
            "both values of this schedule must be above 0.",
        ),
        # What is right, or what only the towers tell.
        ([HEAD.format("image", "linear", "width", 16)], "{name: simreg}", None),
        (
            [
                HEAD.format("image", "linear", "width", 16),
                HEAD.format("text", "linear", "width", 24),
            ],
            "{name: rkd}, {name: rkd, student: text, teacher: image}",
            None,
        ),
        (
            [
                HEAD.format("image", "linear", "width", 16),
                HEAD.format("text", "linear", "width", 24),
                "evals=[{suite: retrieval}]",
            ],
            "{name: vicreg, student: image.backbone, teacher: text.backbone}",
            None,
        ),
    ],
)
def test_what_an_objective_asks_of_its_towers(
    heads: list[str], distiller: str, expected: str | None
) -> None:
    frozen = [] if any("towers.text" in head for head in heads) else ["towers.text.train=none"]
    lines = problems_with(*heads, *frozen, f"distillers=[{distiller}]")
    assert len(lines) == (expected is not None)
    assert expected is None or expected in lines[0]


def test_pairs_in_opposite_orders_are_refused():
    (line,) = problems_with(*TEACHERS, "distillers=[{name: affinity, student: [text, image]}]")
    assert line.endswith(
        "distillers[0].teacher: names image and text, the student text and image. Use one order."
    )


def test_addresses_with_views_and_outputs_are_fine():
    text = SMALL.replace("{name: infonce}", "{name: infonce, student: image.backbone@second}")
    assert problems(text, ["data.views={second: {name: simclr}}"]) == []


def test_a_pair_distiller_finds_its_teachers():
    assert problems(SMALL.replace("{name: infonce}", "{name: affinity}"), TEACHERS) == []


def test_nothing_to_learn():
    assert problems_with("towers.image.train=none", "towers.text.train=none") == [
        "r.yaml:1: towers: every tower is frozen, so there is nothing to train. Give one `train:"
        " all` or `train: head`."
    ]


def test_a_student_that_is_frozen_learns_nothing():
    text = SMALL.replace(
        "- {name: infonce}", "- {name: infonce}\n  - {name: simreg, student: text, teacher: image}"
    )
    assert problems(text, ["towers.text.train=none"]) == [
        "r.yaml:6: distillers[1]: it trains nothing: its student 'text' is frozen."
    ]


def test_a_tower_that_learns_from_nothing():
    (line,) = problems_with("towers.image_2={builder: torchvision, model: resnet18}")
    assert (
        line
        == "is trainable, but no distiller uses it. Set train: none, or add a distiller with its"
        " address."
    )


def test_distillers_need_data():
    assert problems(SMALL.replace("data: {reader: shapes}\n", "")) == [
        "r.yaml:1: key 'data' is missing: the distillers need samples. `data: {reader: shapes}`"
        " renders some."
    ]


def test_towers_alone_are_fine_for_evaluation():
    text = SMALL.partition("distillers:")[0] + "evals: [{suite: zero_shot}]\n"
    assert problems(text) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["schedule={warmup_steps: 1, warmup_epochs: 1}"],
            "schedule.warmup_epochs: warm-up lasts for warmup_steps or for warmup_epochs, "
            "not both. Remove one.",
        ),
        (
            ["schedule={name: constant, end_factor: 0.1}"],
            "schedule.end_factor: has no effect with name: constant without a cooldown. Add"
            " cooldown_steps, or remove it.",
        ),
        (
            ["train.patience=2"],
            "needs train.best, the result that it watches: `best: retrieval.mean_recall`.",
        ),
        (["train.min_delta=0.1"], "has no effect without train.patience."),
        (
            ["train={patience: 2, best: zero_shot.top1}", "evals=[{suite: zero_shot}]"],
            "train.patience: has no effect: 'zero_shot' is evaluated at the ends of the run only."
            " Add `every_epochs: 1` to its entry of evals.",
        ),
        (
            ["optimizer={weight_decay: 0, decay_all: true}"],
            "optimizer.decay_all: has no effect with weight_decay: 0.",
        ),
        (["data.workers=0", "data.prefetch=4"], "has no effect without workers (workers: 0)."),
        (
            ["train.best=zero_shot.top1"],
            "no entry of evals gives 'zero_shot.top1'. Add its suite under evals.",
        ),
        (
            ["train.best=zeroshot.top1", "evals=[{suite: zero_shot}]"],
            "no entry of evals gives 'zeroshot.top1'. Did you mean 'zero_shot'? "
            "Suites of this recipe: zero_shot.",
        ),
        (
            ["evals=[{suite: zero_shot, last: false}]"],
            "evals[0]: never runs: set every_epochs, every_steps, first or last.",
        ),
        (["reports=[csv, {name: csv}]"], "'csv' is listed 2 times."),
        (
            ["data={reader: shapes, readers: [{reader: shapes}]}"],
            "data.readers: data has 'reader' or 'readers', not both. "
            "Move the one reader into the list.",
        ),
        (
            ["data.views={main: null}"],
            "data.views.main: a view's name is made of letters, digits and underscores and is none"
            " of main, input, backbone, tokens, layers.",
        ),
    ],
)
def test_settings_that_exclude_each_other_or_have_no_effect(options, expected):
    assert problems_with(*options) == [expected]


def test_a_suite_that_needs_a_tower_that_is_missing():
    text = (
        "towers:\n  image: {builder: torchvision, model: resnet18}\nevals:\n  - {suite:"
        " zero_shot}\n"
    )
    assert problems(text) == [
        "r.yaml:4: evals[0].suite: 'zero_shot' needs a tower for text, and the recipe has none."
    ]


def test_adapters_that_do_not_go_with_the_tower_are_refused():
    assert problems_with("towers.text.adapter={name: lora}") == []
    (line,) = problems_with("towers.text.adapter={name: reft}")
    assert "name: 'reft' is for Hugging Face text encoders. Set builder: adapters" in line
    masked = "towers.image={builder: timm, model: test_vit, masks: drop, adapter: {name: vpt}}"
    assert problems_with(masked)[0].startswith(
        "towers.image.masks: 'drop' does not work with adapter 'vpt'"
    )


@pytest.mark.parametrize(
    ("patterns", "fine"),
    [("[layer4.*]", False), ("[layer4.*, head.*]", True), ("['*', '!*.bn*']", True)],
)
def test_patterns_that_leave_a_fresh_head_frozen_are_refused(patterns: str, fine: bool) -> None:
    text = (
        "towers:\n  image: {builder: torchvision, model: resnet18, head: {name: linear, width:"
        f" 8}}, train: {patterns}}}\n  text: {{builder: openclip, config: {{layers: 1, width: 8,"
        " heads: 2}}\ndistillers: [{name: infonce}]\ndata: {reader: shapes}\n"
    )
    if fine:
        assert parse_recipe(text, "r.yaml").towers["image"].head is not None
        return
    with pytest.raises(
        RecipeError,
        match=r"r.yaml:2: towers.image.head: would keep its random weights.* Add 'head\.\*'",
    ):
        parse_recipe(text, "r.yaml")


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        (
            "image={builder: adapters, adapter: {name: lora}}",
            "towers.image.builder: builder 'adapters' builds text towers, not image towers."
            " Choose one of: openclip, torchvision, timm, dvae, huggingface; or rename the tower,"
            " or set `modality: text`.",
        ),
        (
            "student_text={builder: timm, model: resnet18}",
            "towers.student_text.builder: builder 'timm' builds image towers, not text towers."
            " Choose one of: openclip, huggingface, sbert, adapters; or rename the tower, or set"
            " `modality: image`.",
        ),
        (
            "b={builder: sbert, model: x, modality: image}",
            "towers.b.builder: builder 'sbert' builds text towers, not image towers."
            " Choose one of: openclip, torchvision, timm, dvae, huggingface.",
        ),
        ("image={builder: huggingface, model: x, modality: text}", None),
        ("image={builder: huggingface, model: x}", None),
        ("b={builder: timm, model: resnet18}", None),
        ("image_to_text={builder: timm, model: resnet18}", None),
    ],
)
def test_builders_of_the_other_modality_are_refused_with_those_that_fit(tower, expected):
    name = tower.partition("=")[0]
    lines = problems_with(f"towers.{tower}", f"towers.{name}.train=none", "distillers=[]")
    # Where an extra is missing, a line of its own names it.
    found = [line for line in lines if ".builder" in line and "optional package" not in line]
    assert found == ([expected] if expected else [])


def test_sinks_without_their_package_are_refused_where_the_recipe_is_to_be_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    text = SMALL + "reports: [csv, {name: wandb, project: x}]\ntrain: {epochs: x}\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", to_train=True)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("r.yaml:7: reports[1]: sink 'wandb' needs an optional package: pip")
    parse_recipe(text.replace("epochs: x", "epochs: 1"), "r.yaml")


def test_a_step_too_small_for_a_distiller_is_refused_where_it_is_to_be_trained():
    text = SMALL + "train: {batch_size: 1}\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", to_train=1)
    line = 1 + SMALL.splitlines().index(next(x for x in SMALL.splitlines() if "infonce" in x))
    assert str(caught.value) == (
        f"r.yaml:{line}: distillers[0]: distiller 'infonce' needs at least 2 samples a step over"
        " all processes and gets 1. Raise train.batch_size, or train on more processes."
    )
    parse_recipe(text, "r.yaml", to_train=2)
    parse_recipe(text, "r.yaml")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["evals=[{suite: retrieval}, {suite: zero_shot, name: retrieval}]"],
            "evals[1]: its results would be called 'retrieval', as those of evals[0]. Give one of"
            " them another `name:`.",
        ),
        (
            ["evals=[{suite: knn, tower: imag, data: {reader: shapes}}]"],
            "evals[0].tower: no tower 'imag'. Did you mean 'image'? Towers: image, text.",
        ),
        (
            ["evals=[{suite: knn, tower: text, data: {reader: shapes}}]"],
            "evals[0].tower: 'knn' measures towers for image, and 'text' is one for text.",
        ),
        (
            ["evals=[{suite: search, query: txt, data: {reader: shapes}}]"],
            "evals[0].query: no tower 'txt'. Did you mean 'text'? Towers: image, text.",
        ),
        (
            ["evals=[{suite: search, index: 'image..x', data: {reader: shapes}}]"],
            "evals[0].index: 'image..x' is not an address.",
        ),
        (
            ["evals=[{suite: search, index: image.tokens, data: {reader: shapes}}]"],
            "evals[0].index: 'image.tokens' is not tower, tower.backbone or tower@TEXT.",
        ),
        (
            ["evals=[{suite: search, index: image@b, data: {reader: shapes}}]"],
            "evals[0].index: @b has no effect on tower 'image', which reads images. Leave it out.",
        ),
        (
            ["evals=[{suite: search, k: [0], data: {reader: shapes}}]"],
            "evals[0].k: expected a list of integers above 0",
        ),
        (
            ["optimizer.groups=[{match: ['image.*'], from: {epochs: 1}}]"],
            "optimizer.groups[0].from: is never reached: the run has 1 epochs, counted from 0.",
        ),
        (
            ["optimizer.groups=[{match: ['*'], from: {steps: 9}}]", "train.steps=9"],
            "optimizer.groups[0].from: is never reached: the run has 9 steps, counted from 0.",
        ),
        (
            ["optimizer.groups=[{match: ['*'], momentun: 0}]", "optimizer.name=sgd"],
            "optimizer.groups[0].momentun: unknown key. Did you mean 'momentum'?",
        ),
        (
            ["optimizer.groups=[{lr_factor: 2}]"],
            "optimizer.groups[0]: key 'match' is missing from the group.",
        ),
    ],
)
def test_names_of_results_and_groups(options: list[str], expected: str) -> None:
    found = problems_with(*options)
    assert any(expected in line for line in found), found


def test_results_with_names_of_their_own_and_groups_that_begin_in_the_run_are_fine() -> None:
    options = [
        "evals=[{suite: retrieval}, {suite: retrieval, name: again}, {suite: zero_shot}]",
        "optimizer.groups=[{match: ['image.*'], from: {epochs: 1}, betas: [0.8, 0.9]}]",
        "train.epochs=2",
    ]
    assert problems_with(*options) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["train.batch_size=8", "train.chunk=8"], "a step has at most 8 pictures or texts at once"),
        (
            ["train.chunk=4", "towers.image.train=head", "towers.text.train=head"],
            "every backbone is frozen",
        ),
        (
            [
                "train.checkpoint_activations=true",
                "towers.image.train=head",
                "towers.text.train=head",
            ],
            "every backbone is frozen and stores no activations",
        ),
        (
            ["train.shard=towers", "towers.image.train=head", "towers.text.train=head"],
            "every backbone is frozen, and only trained ones are divided",
        ),
        (["train.shard=towers", "train.channels_last=true"], "Remove train.channels_last"),
        (["train.shard=towers", "optimizer.name=adafactor"], "'adafactor' needs whole weights"),
        (["train.tf32=true", "train.precision=bf16"], "has no effect with precision: bf16"),
        (["towers.image.dtype=bf16"], "is for frozen backbones, and this one is trained"),
    ],
)
def test_a_setting_for_large_models_without_effect_is_refused(options, expected):
    heads = [f"towers.{name}.head={{name: linear, width: 8}}" for name in ("image", "text")]
    assert any(expected in line for line in problems_with(*heads, *options))


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        (
            "image={builder: huggingface, model: x, max_length: 8}",
            "towers.image.max_length: is for text towers, and this one takes images. Remove it, or"
            " set `modality: text`.",
        ),
        (
            "b={builder: huggingface, model: x, image_size: 64}",
            "towers.b.image_size: is for image towers, and this one takes texts. Remove it, or set"
            " `modality: image`.",
        ),
        ("b={builder: huggingface, model: x, max_length: 8}", None),
        ("b={builder: huggingface, model: x, modality: image, image_size: 64}", None),
    ],
)
def test_keys_of_the_other_modality_are_refused(tower: str, expected: str | None) -> None:
    name = tower.partition("=")[0]
    lines = problems_with(f"towers.{tower}", f"towers.{name}.train=none", "distillers=[]")
    found = [line for line in lines if "towers" in line and "is for" in line]
    assert found == ([expected] if expected else [])
