"""For every key of a recipe's sections, a call in which it matters."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.unit.engine.recipes import IMAGE, TEXT


class Change(NamedTuple):
    """Sections of a tiny recipe, and the same with a key changed."""

    changed: dict[str, Any]
    base: dict[str, Any] = {}


def towers(image: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """The two towers, with keys of the image tower, and others, or another text tower."""
    return {"towers": {"image": {**IMAGE, **(image or {})}, "text": TEXT, **others}}


def one(section: str, **keys: Any) -> dict[str, Any]:
    return {section: keys}


HEAD = {"name": "linear", "width": 16}
NEXT = {"follows": "image"}
FROZEN = {**TEXT, "train": "none"}
SHAPES = {"reader": "shapes", "num_samples": 6, "size_px": 32}
EVALS = [{"suite": "retrieval", "data": SHAPES}]
SIMREG = [{"name": "simreg", "student": "image", "teacher": "next"}]
LABELS = [{"name": "infonce"}, {"name": "cross_entropy", "student": "image", "num_classes": 100}]
LONG = {"epochs": 3}


def evals(**keys: Any) -> dict[str, Any]:
    return {"evals": [{**EVALS[0], **keys}], "train": LONG}


def patient(patience: int | None) -> dict[str, Any]:
    """A run that cannot improve."""
    watching = {"best": "retrieval.mean_recall", "patience": patience}
    return {**evals(every_steps=1), "optimizer": {"lr": 1e-30}, "train": {**LONG, **watching}}


CHANGES: dict[str, dict[str, Change]] = {
    "towers": {
        "builder": Change(towers({"builder": "timm", "model": "resnet10t", "config": {}})),
        "like": Change(towers({"like": "resnet-base"})),
        "modality": Change(towers({"modality": "text"})),
        "run": Change(towers(text={"run": "nowhere"})),
        "soup": Change(towers(text={"run": ["nowhere", "there"], "soup": "uniform"})),
        "tower": Change(towers(text={"run": "nowhere", "tower": "x"})),
        "checkpoint": Change(towers(text={"run": "nowhere", "checkpoint": "best"})),
        "follows": Change({**towers(text=FROZEN, next=NEXT), "distillers": SIMREG}),
        "momentum": Change(
            {
                **towers(text=FROZEN, next={**NEXT, "momentum": 0.5}),
                "distillers": SIMREG,
                "train": LONG,
            },
            {**towers(text=FROZEN, next=NEXT), "distillers": SIMREG, "train": LONG},
        ),
        "pooler": Change(towers({"pooler": {"name": "mean"}})),
        "head": Change(towers({"head": HEAD})),
        "heads": Change(
            {
                **towers({"heads": {"a": HEAD}}),
                "distillers": [{"name": "infonce", "student": "image.a"}],
            }
        ),
        "masks": Change(towers({"masks": "drop"})),
        "shuffle": Change(
            {**towers(text=FROZEN, next={**NEXT, "shuffle": True}), "distillers": SIMREG},
            {**towers(text=FROZEN, next=NEXT), "distillers": SIMREG},
        ),
        "adapter": Change(towers({"adapter": {"name": "lora"}})),
        "prompt": Change(towers(text={**TEXT, "prompt": {"tokens": 2}, "train": "prompt"})),
        "train": Change(towers({"train": {"last": 1}})),
        "freeze_batch_norm_stats": Change(towers({"freeze_batch_norm_stats": True})),
        "dtype": Change(
            towers(text={**FROZEN, "dtype": "bf16", "cache": False}),
            towers(text={**FROZEN, "cache": False}),
        ),
        "lr": Change(towers({"lr": 0.5})),
        "layer_decay": Change(towers({"layer_decay": 0.5})),
        "init": Change(
            towers(
                {"init": {"from": "other_image", "layers": "first"}},
                other_image={**IMAGE, "train": "none"},
            ),
            towers(other_image={**IMAGE, "train": "none"}),
        ),
        "cache": Change(
            towers(text={**FROZEN, "cache": False}),
            towers(text={**FROZEN, "cache": True}),
        ),
    },
    "distillers": {
        "name": Change({"distillers": [{"name": "siglip"}]}),
        "weight": Change({"distillers": [{"name": "infonce", "weight": 0.5}]}),
        "student": Change(
            {"distillers": [{"name": "infonce", "student": "image.backbone"}]},
            towers({"head": HEAD}),
        ),
        "teacher": Change({"distillers": [{"name": "infonce", "teacher": "text.backbone"}]}),
        "negatives": Change(
            {
                "data": {"views": {"b": {"name": "simclr"}}},
                "distillers": [{"name": "infonce", "negatives": "image@b"}],
            }
        ),
        "widths": Change({"distillers": [{"name": "infonce", "widths": [4, 16]}]}),
        "width_weights": Change(
            {"distillers": [{"name": "infonce", "widths": [4, 16], "width_weights": [0.1, 1]}]},
            {"distillers": [{"name": "infonce", "widths": [4, 16]}]},
        ),
        "lr": Change({"distillers": [{"name": "infonce", "lr": 0.5}]}),
    },
    "data": {
        "reader": Change(one("data", reader="images", path=".")),
        "readers": Change(one("data", reader=None, readers=[SHAPES, {**SHAPES, "seed": 3}])),
        "augment": Change(one("data", augment={"name": "none"})),
        "views": Change(
            {
                "data": {"views": {"b": {"name": "simclr"}}},
                "distillers": [{"name": "infonce", "student": "image@b"}],
            }
        ),
        "episode_samples": Change(one("data", episode_samples=8)),
        "shuffle": Change(one("data", shuffle=False)),
        "per_class": Change(one("data", per_class=2)),
        "distinct": Change(one("data", distinct="position")),
        "workers": Change(one("data", workers=1)),
        "prefetch": Change(one("data", prefetch=3)),
        "exclude": Change(one("data", exclude="missing.csv")),
        "max_broken_share": Change(one("data", max_broken_share=2)),
    },
    "train": {
        "epochs": Change(one("train", epochs=2)),
        "steps": Change(one("train", steps=1)),
        "batch_size": Change(one("train", batch_size=4)),
        "accumulate": Change(one("train", accumulate=2)),
        "precision": Change(one("train", precision="bf16")),
        "clip_grad_norm": Change(one("train", clip_grad_norm=0.01)),
        "ema": Change(one("train", ema=0.9)),
        "seed": Change(one("train", seed=1)),
        "chunk": Change(one("train", chunk=2)),
        "tf32": Change(one("train", tf32=True)),
        "shard": Change(one("train", shard="towers")),
        "checkpoint_activations": Change(one("train", checkpoint_activations=True)),
        "compile": Change(one("train", compile=True)),
        "channels_last": Change(one("train", channels_last=True)),
        "sync_batch_norm": Change(one("train", sync_batch_norm=True)),
        "save_every_steps": Change(one("train", save_every_steps=1, keep=9), one("train", keep=9)),
        "save_every_epochs": Change(
            {"train": {**LONG, "save_every_epochs": 2, "keep": 9}}, {"train": {**LONG, "keep": 9}}
        ),
        "save_every_minutes": Change(
            one("train", save_every_minutes=1e-9, keep=9), one("train", keep=9)
        ),
        "keep": Change({"train": {**LONG, "keep": 2}}, {"train": LONG}),
        "best": Change(
            {"train": {"best": "retrieval.mean_recall"}, "evals": EVALS}, {"evals": EVALS}
        ),
        "patience": Change(patient(1), patient(None)),
        "min_delta": Change(one("train", min_delta=0.1)),
        "max_nonfinite_steps": Change(
            {**one("train", max_nonfinite_steps=1), "optimizer": {"lr": 1e30}},
            one("optimizer", lr=1e30),
        ),
        "log_every_steps": Change({"train": {**LONG, "log_every_steps": 4}}, {"train": LONG}),
        "cache_dir": Change(
            {**towers(text={**FROZEN, "cache": True}), "train": {"cache_dir": "here"}},
            towers(text={**FROZEN, "cache": True}),
        ),
    },
    "optimizer": {
        "name": Change(one("optimizer", name="sgd")),
        "lr": Change(one("optimizer", lr=0.01)),
        "weight_decay": Change(one("optimizer", weight_decay=0.9)),
        "decay_all": Change(one("optimizer", decay_all=True)),
        "groups": Change(one("optimizer", groups=[{"match": ["image.*"], "lr_factor": 0.1}])),
    },
    "schedule": {
        "name": Change(one("schedule", name="constant")),
        "warmup_steps": Change(one("schedule", warmup_steps=2)),
        "warmup_epochs": Change(one("schedule", warmup_epochs=1)),
        "end_factor": Change(one("schedule", end_factor=0.5)),
        "cooldown_steps": Change(
            one("schedule", name="constant", cooldown_steps=1), one("schedule", name="constant")
        ),
        "cooldown_epochs": Change(
            one("schedule", name="constant", cooldown_epochs=1), one("schedule", name="constant")
        ),
        "cooldown_shape": Change(
            one("schedule", name="constant", cooldown_steps=2, cooldown_shape="sqrt"),
            one("schedule", name="constant", cooldown_steps=2),
        ),
        "timescale": Change(
            one("schedule", name="rsqrt", timescale=9), one("schedule", name="rsqrt")
        ),
        "milestones": Change(
            {"schedule": {"name": "steps", "milestones": [1]}, "train": LONG},
            {"schedule": {"name": "constant"}, "train": LONG},
        ),
        "factor": Change(
            {"schedule": {"name": "steps", "milestones": [1], "factor": 0.5}, "train": LONG},
            {"schedule": {"name": "steps", "milestones": [1]}, "train": LONG},
        ),
    },
    "evals": {
        "suite": Change({"evals": [{"suite": "zero_shot", "data": SHAPES}]}, {"evals": EVALS}),
        "name": Change(evals(name="mine"), evals()),
        "tower": Change(evals(tower="nowhere"), evals()),
        "width": Change(evals(width=4), evals()),
        "every_epochs": Change(evals(every_epochs=1), evals()),
        "every_steps": Change(evals(every_steps=2), evals()),
        "reference": Change(evals(reference=True), evals()),
        "first": Change(evals(first=True), evals()),
        "last": Change(evals(every_epochs=2, last=False), evals(every_epochs=2)),
    },
}
"""For every key of a recipe's sections, a call in which it matters."""
