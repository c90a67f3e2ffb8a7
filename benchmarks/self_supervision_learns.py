"""Does self-supervision learn? Small towers from scratch on Omniglot, without its labels.

    python benchmarks/self_supervision_learns.py OMNIGLOT [--only simclr mae] [--seeds 0 1 2]
                                                 [--out runs/learns]

OMNIGLOT is a zip of Omniglot's drawings, such as `images_background_small1.zip`. Drawings 1 to 15
of each character train the tower and vote, 16 to 20 are classified. Every row is a shipped recipe
of `ssl/` with the `--set` options of `METHODS`. A suite reads the labels, before the first step
(the same tower, untrained) and after the last: the votes of the 20 nearest drawings, or, for
methods that hide parts of a picture, 20 epochs of fine-tuning on the labels. Prints the table of
docs/self_supervision.md; runs that are complete are not repeated. Exits with 1 where a mean over
the seeds stays below its floor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.engine.launching.start import TrainRequest, start_training

NUM_VOTING = 15
COMMON = (
    "data.workers=0",
    "train.batch_size=128",
    "train.epochs=1000",
    "train.precision=fp32",
    "train.sync_batch_norm=false",
    "train.save_every_epochs=null",
    "train.log_every_steps=30",
    "optimizer={name: adamw, lr: 5e-3, weight_decay: 0.05}",
    "schedule={name: cosine, warmup_steps: 10}",
    "reports=[csv]",
)
RESNET = (
    "towers.image.builder=timm",
    "towers.image.model=resnet18",
    "towers.image.image_size=32",
    "towers.image.config={layers: [1, 1, 1, 1], channels: [16, 32, 64, 128], output_stride: 8}",
)
VIT = (
    "towers.image.builder=timm",
    "towers.image.model=vit_tiny_patch16_224",
    "towers.image.image_size=32",
    "towers.image.config={patch_size: 4, depth: 3, embed_dim: 64, num_heads: 4}",
    "optimizer.lr=2e-3",
)
# No flips and no colors: a mirrored character is another one.
CROP = "name: standard, scale: [0.4, 1.0], ratio: [0.6, 1.67]"
HIDING = "name: standard, scale: [0.4, 1.0]"
PAIR = (f"data.augment={{{CROP}, copies: 2}}",)
VIEWS = (f"data.augment={{{CROP}}}", f"data.views={{b: {{{CROP}}}}}")


def sized(head: str, hidden: int, width: int) -> tuple[str, ...]:
    """A head of the recipe at a small size."""
    return tuple(
        f"towers.image.heads.{head}.{key}={value}"
        for key, value in (("hidden", hidden), ("width", width))
    )


class Method(NamedTuple):
    """A recipe at a small size, its suite, and what the mean over the seeds must reach."""

    recipe: str
    steps: int
    floor: float
    settings: Sequence[str]
    suite: str = "knn"


METHODS = [
    Method("simclr", 150, 0.51, (*RESNET, *PAIR, *sized("project", 256, 64))),
    Method(
        "mocov2",
        150,
        0.42,
        (
            *RESNET,
            f"data.augment={{{CROP}}}",
            f"data.views={{key: {{{CROP}}}}}",
            # In so few steps features without batch norms stay where random weights put them.
            "towers.image.heads.project={name: mlp, layers: 2, hidden: 256, width: 64, norm: batch,"
            " activation: relu, last_norm: batch}",
            "towers.image_key.momentum=0.95",
            "distillers[0].queue_size=1024",
            "distillers[0].temperature=0.1",
        ),
    ),
    Method("barlow_twins", 150, 0.34, (*RESNET, *VIEWS, *sized("project", 256, 256))),
    Method(
        "byol",
        150,
        0.31,
        (
            *RESNET,
            *VIEWS,
            *sized("project", 256, 64),
            *sized("predict", 256, 64),
            "towers.image_key.momentum={cosine: [0.95, 1.0]}",
        ),
    ),
    Method(
        "swav",
        100,
        0.19,
        (
            *RESNET,
            *PAIR,
            "data.views={local: {name: standard, scale: [0.2, 0.5], size_px: 32, copies: 2}}",
            *sized("project", 256, 64),
            "distillers[0].num_prototypes=60",
            "distillers[0].queue_size=null",
        ),
    ),
    Method(
        "deepcluster",
        100,
        0.14,
        (
            *RESNET,
            f"data.augment={{{CROP}}}",
            "distillers[0].num_clusters=60",
            "distillers[0].components=32",
        ),
    ),
    Method(
        "rotation",
        60,
        0.18,
        (*RESNET, "data.augment={name: quarter_turns, scale: [0.4, 1.0]}"),
    ),
    Method("vicreg", 150, 0.3, (*RESNET, *VIEWS, *sized("project", 256, 256))),
    Method(
        "simsiam",
        150,
        0.25,
        (*RESNET, *VIEWS, *sized("project", 256, 256), *sized("predict", 64, 256)),
    ),
    Method(
        "mae",
        300,
        0.0,
        (
            *VIT,
            f"data.augment={{{HIDING}, mask: {{name: random, share: 0.75}}}}",
            "towers.image.heads.paint={name: decoder, reads: tokens, width_inner: 64, layers: 2,"
            " heads: 4, width: 48, at: hidden}",
        ),
        "fine_tune",
    ),
    Method(
        "simmim",
        300,
        0.0,
        (
            *VIT,
            f"data.augment={{{HIDING}, mask: {{name: random, share: 0.6}}}}",
            "towers.image.heads.paint.width=48",
            "towers.image.heads.pixels.patch_px=4",
        ),
        "fine_tune",
    ),
]
SUITES = {"knn": "k: [20]", "fine_tune": "epochs: 20, lr: 0.05, features: backbone"}


def unpack(archive: Path, folder: Path) -> None:
    """Class folders of the drawings below `train` and `test`."""
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if not name.endswith(".png"):
                continue
            *_, alphabet, character, drawing = name.split("/")
            number = int(drawing.partition("_")[2].removesuffix(".png"))
            split = "train" if number <= NUM_VOTING else "test"
            place = folder / split / f"{alphabet}_{character}" / drawing
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read(name))


def settings_of(method: Method, data: Path, seed: int) -> list[str]:
    """Every `--set` option of a run."""
    labeled = f"data: {{reader: classification, path: '{data}', split: test}}"
    suite = f"{{suite: {method.suite}, first: true, {labeled}, {SUITES[method.suite]}}}"
    return [
        *COMMON,
        f"data.path={data / 'train'}",
        f"train.steps={method.steps}",
        f"train.seed={seed}",
        f"evals=[{suite}]",
        *method.settings,
    ]


def scores(run: Path, suite: str) -> tuple[float, float] | None:
    """The suite's primary metric before the first step and after the last; None where the run is
    not complete."""
    found = []
    for file in sorted(run.glob("results/step_*/*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["name"] == suite:
            found.append(result["metrics"][result["primary_metric"]])
    return (found[0], found[1]) if len(found) == 2 else None


def measure(method: Method, data: Path, run: Path, seed: int) -> tuple[float, float]:
    """Train where that is not done yet; the score before and after."""
    found = scores(run, method.suite)
    if found is None:
        request = TrainRequest(
            recipe=f"ssl/{method.recipe}",
            overrides=settings_of(method, data, seed),
            run=run,
            quiet=True,
        )
        start_training(request)
        found = scores(run, method.suite)
    assert found is not None, f"{run} was stopped"
    return found


def row(method: Method, pairs: Sequence[tuple[float, float]]) -> str:
    """A row of the table."""
    before, after = (statistics.mean(pair[column] for pair in pairs) for column in (0, 1))
    each = ", ".join(f"{pair[1]:.2f}" for pair in pairs)
    return (
        f"| `ssl/{method.recipe}` | `{method.suite}` | {method.steps} | {before:.2f} |"
        f" {after:.2f} | {each} | {after / before:.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--only", nargs="*", choices=[method.recipe for method in METHODS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/learns"))
    options = parser.parse_args()
    data = (options.out / "omniglot").resolve()
    if not data.is_dir():
        unpack(options.archive, data)
    rows, fine = [], True
    for method in METHODS:
        if options.only and method.recipe not in options.only:
            continue
        pairs = [
            measure(method, data, options.out / f"{method.recipe}_{seed}", seed)
            for seed in options.seeds
        ]
        rows.append(row(method, pairs))
        before, after = (statistics.mean(pair[column] for pair in pairs) for column in (0, 1))
        fine &= after >= max(method.floor, before)
    print("| recipe | measured by | steps | untrained | trained | each seed | ratio |")
    print("|---|---|---:|---:|---:|---|---:|")
    print("\n".join(rows))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
