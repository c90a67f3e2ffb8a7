"""Does self-supervision learn? Small towers from scratch, without labels.

    python benchmarks/self_supervision_learns.py [--omniglot ZIP] [--digits FOLDER]
        [--photos FOLDER] [--only simclr mae] [--seeds 0 1 2] [--out runs/learns]

ZIP holds Omniglot's drawings, such as `images_background_small1.zip`. Drawings 1 to 15 of each
character train the tower and vote, 16 to 20 are classified. --digits names a folder with digits of
MNIST, `images-idx3-ubyte.gz` and `labels-idx1-ubyte.gz`, of which the last 1,000 are classified;
--photos one with CIFAR-10 as ELEVATER has it, class folders in train.zip and val.zip, which train,
and test.zip.

Every row is a shipped recipe of `ssl/` with the `--set` options of `METHODS`. A suite reads the
labels, before the first step (the same tower, untrained) and after the last: the votes of the 20
nearest drawings, or, for methods that hide parts of a picture, fine-tuning, of digits on 20 of each
class. Prints the table of docs/self_supervision.md, with the methods of the data that is named;
runs that are complete are not repeated. Exits with 1 where a mean over the seeds stays below its
floor, or below the untrained tower.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlkd_cli.engine.launching.start import TrainRequest, start_training

NUM_VOTING = 15
NUM_DIGITS_JUDGED, NUM_DIGITS_LABELED = 1000, 20
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
    "towers.image.image_size=28",
    "towers.image.config={patch_size: 4, depth: 3, embed_dim: 64, num_heads: 4, global_pool: avg}",
    "train.batch_size=64",
    "optimizer.lr=2e-3",
)
# No flips and no colors: a mirrored character is another one.
CROP = "name: standard, scale: [0.4, 1.0], ratio: [0.6, 1.67]"
HIDING = "name: standard, scale: [0.6, 1.0]"
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
    data: str = "omniglot"


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
            # The recipe's own optimizer: each clustering has a classifier without momentum.
            "optimizer={name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1e-5,"
            ' groups: [{match: ["distillers.deepcluster.*"], momentum: 0}]}',
        ),
    ),
    Method(
        "odc",
        100,
        0.14,
        (
            *RESNET,
            f"data.augment={{{CROP}}}",
            *sized("embed", 256, 64),
            "distillers[0].num_clusters=60",
            "distillers[0].components=32",
            "distillers[0].min_cluster=10",
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
        "mocov3",
        150,
        0.27,
        (
            # A ResNet has none of the positions and of the frozen patches of the recipe's ViT.
            "towers.image={heads: {project: {name: mlp, norm: batch, last_norm: batch_plain},"
            " predict: {name: mlp, norm: batch, last_norm: batch_plain, reads: project}}}",
            *RESNET,
            *VIEWS,
            *sized("project", 256, 64),
            *sized("predict", 256, 64),
            "towers.image_key.momentum={cosine: [0.95, 1.0]}",
        ),
    ),
    Method(
        "densecl",
        150,
        0.27,
        (
            *RESNET,
            f"data.augment={{{CROP}}}",
            f"data.views={{key: {{{CROP}}}}}",
            *(
                f"towers.image.heads.{head}={{name: mlp, layers: 2, hidden: 256, width: 64,"
                f" norm: batch, activation: relu, last_norm: batch{reads}}}"
                for head, reads in (("project", ""), ("dense", ", reads: tokens"))
            ),
            "towers.image_key.momentum=0.95",
            "distillers[0].queue_size=1024",
            "distillers[0].weight=0.5",
            "distillers[1].queue_size=1024",
            "distillers[1].weight=0.5",
        ),
    ),
    Method(
        "dino",
        150,
        0.27,
        (
            *RESNET,
            *PAIR,
            "data.views={local: {name: standard, scale: [0.2, 0.5], size_px: 32, copies: 2}}",
            "towers.image.heads.proto={name: prototypes, num_prototypes: 256, hidden: 256,"
            " bottleneck: 64, norm: batch}",
            "towers.image_teacher.momentum={cosine: [0.95, 1.0]}",
            "distillers[0].teacher_temperature=0.04",
        ),
    ),
    Method(
        "npid",
        150,
        0.15,
        (
            *RESNET,
            f"data.augment={{{CROP}}}",
            "towers.image.heads.embed.width=64",
            # As few drawings as there are allow the whole softmax.
            "distillers[0].estimator=softmax",
            "distillers[0].num_negatives=null",
        ),
    ),
    Method(
        "relative_loc",
        60,
        0.15,
        (
            *RESNET,
            # Cells of a drawing at the size at which it is classified.
            "data.augment={name: patch_grid, cell_px: 14, jitter_px: 4, grayscale: 0}",
            "towers.image.heads.pair.hidden=256",
        ),
    ),
    Method(
        "mae",
        500,
        0.0,
        (
            *VIT,
            f"data.augment={{{HIDING}, mask: {{name: random, share: 0.75}}}}",
            "towers.image.heads.paint={name: decoder, reads: tokens, width_inner: 64, layers: 1,"
            " heads: 4, width: 48, at: hidden}",
            # Most patches of a digit are black, and normalized ones have no picture to paint.
            "towers.image.heads.pixels.normalize=false",
        ),
        "digits",
    ),
    Method(
        "cae",
        400,
        0.0,
        (
            *VIT,
            f"data.augment={{{HIDING}, mask: {{name: block, hidden: 20}}}}",
            "towers.image.config={patch_size: 4, depth: 3, embed_dim: 64, num_heads: 4,"
            " global_pool: avg, init_values: 0.1}",
            "towers.image.heads={latent: {name: regressor, reads: tokens, layers: 1, heads: 4},"
            " code: {name: decoder, reads: latent, width_inner: 64, layers: 1, heads: 4, width: 64,"
            " fill: false}}",
            # Codes of a random network: DALL-E's weights do not come with vlkd.
            "towers.image_tokenizer={builder: dvae, image_size: 56, train: none,"
            " config: {width: 16, layers: 1, codes: 64},"
            " heads: {code: {name: select, reads: tokens, at: hidden}}}",
        ),
        "digits",
    ),
    Method(
        "ibot",
        300,
        0.0,
        (
            *VIT,
            "towers.image.image_size=32",
            "towers.image.config={patch_size: 4, depth: 3, embed_dim: 64, num_heads: 4,"
            " global_pool: avg, dynamic_img_size: true}",
            "data.augment={name: byol, scale: [0.4, 1.0], blur: 0, copies: 2,"
            " mask: {name: block, share: [0.1, 0.5], probability: 0.5, smallest: 4}}",
            "data.views={local: {name: byol, scale: [0.1, 0.4], blur: 0, size_px: 16, copies: 2}}",
            "towers.image.heads.proto={name: prototypes, num_prototypes: 256, hidden: 256,"
            " bottleneck: 64}",
            "towers.image.heads.patch={name: prototypes, num_prototypes: 256, hidden: 256,"
            " bottleneck: 64, reads: tokens, at: hidden}",
            "towers.image_teacher.momentum={cosine: [0.95, 1.0]}",
            "distillers[0].teacher_temperature=0.04",
        ),
        "photos",
    ),
    Method(
        "simmim",
        400,
        0.0,
        (
            *VIT,
            "towers.image.image_size=32",
            "data.augment={name: standard, scale: [0.67, 1.0], flip: 0.5,"
            " mask: {name: random, share: 0.6}}",
            "towers.image.heads.paint.width=48",
            "towers.image.heads.pixels.patch_px=4",
        ),
        "photos",
    ),
]


class Judge(NamedTuple):
    """What measures the towers of some data.

    Args:
        suite: its name.
        keys: its settings.
        labeled: the split that it learns from or that votes.
    """

    suite: str
    keys: str
    labeled: str = "train"


JUDGES = {
    "omniglot": Judge("knn", "k: [20]"),
    "digits": Judge("fine_tune", "epochs: 60, lr: 0.05, features: backbone", "labeled"),
    "photos": Judge("fine_tune", "epochs: 15, lr: 0.02, features: backbone"),
}


def unpack_photos(source: Path, folder: Path) -> None:
    """Class folders of the photos below `train` and `test`."""
    for archive, split in (("train", "train"), ("val", "train"), ("test", "test")):
        with zipfile.ZipFile(source / f"{archive}.zip") as file:
            file.extractall(folder / split)


def unpack_digits(source: Path, folder: Path) -> None:
    """Class folders of the digits below `train`, `labeled` (a part of them) and `test`."""
    images, labels = (
        np.frombuffer(gzip.decompress((source / name).read_bytes()), np.uint8, offset=header)
        for name, header in (("images-idx3-ubyte.gz", 16), ("labels-idx1-ubyte.gz", 8))
    )
    seen = [0] * 10
    for row, (label, pixels) in enumerate(zip(labels, images.reshape(-1, 28, 28), strict=True)):
        splits = ["test"]
        if row < len(labels) - NUM_DIGITS_JUDGED:
            splits = ["train", "labeled"] if seen[label] < NUM_DIGITS_LABELED else ["train"]
            seen[label] += 1
        for split in splits:
            place = folder / split / str(label) / f"{row}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)


def unpack_drawings(archive: Path, folder: Path) -> None:
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
    judge = JUDGES[method.data]
    labeled = (
        f"data: {{reader: classification, path: '{data / 'test'}'}},"
        f" train_data: {{reader: classification, path: '{data / judge.labeled}'}}"
    )
    suite = f"{{suite: {judge.suite}, first: true, {labeled}, {judge.keys}}}"
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
    suite = JUDGES[method.data].suite
    found = scores(run, suite)
    if found is None:
        request = TrainRequest(
            recipe=f"ssl/{method.recipe}",
            overrides=settings_of(method, data, seed),
            run=run,
            quiet=True,
        )
        start_training(request)
        found = scores(run, suite)
    assert found is not None, f"{run} was stopped"
    return found


def row(method: Method, pairs: Sequence[tuple[float, float]]) -> str:
    """A row of the table."""
    before, after = (statistics.mean(pair[column] for pair in pairs) for column in (0, 1))
    each = ", ".join(f"{pair[1]:.2f}" for pair in pairs)
    suite = JUDGES[method.data].suite
    return (
        f"| `ssl/{method.recipe}` | {method.data} | `{suite}` | {method.steps} |"
        f" {before:.2f} | {after:.2f} | {each} | {after / before:.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--omniglot", type=Path)
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--only", nargs="*", choices=[method.recipe for method in METHODS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/learns"))
    options = parser.parse_args()
    sources = {name: getattr(options, name) for name in JUDGES}
    if not any(sources.values()):
        parser.error("name some data: --omniglot ZIP, --digits FOLDER or --photos FOLDER")
    folders = {name: (options.out / name).resolve() for name in sources if sources[name]}
    unpack = {"omniglot": unpack_drawings, "digits": unpack_digits, "photos": unpack_photos}
    for name, folder in folders.items():
        if not folder.is_dir():
            unpack[name](sources[name], folder)
    rows, fine = [], True
    for method in METHODS:
        data = folders.get(method.data)
        if data is None or (options.only and method.recipe not in options.only):
            continue
        pairs = [
            measure(method, data, options.out / f"{method.recipe}_{seed}", seed)
            for seed in options.seeds
        ]
        rows.append(row(method, pairs))
        before, after = (statistics.mean(pair[column] for pair in pairs) for column in (0, 1))
        fine &= after >= max(method.floor, before)
    print("| recipe | data | measured by | steps | untrained | trained | each seed | ratio |")
    print("|---|---|---|---:|---:|---:|---|---:|")
    print("\n".join(rows))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
