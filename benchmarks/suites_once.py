"""All vision suites of one data set against one pass of the towers over it, at the cost of a real
tower.

    python benchmarks/suites_once.py [--train 600] [--val 300] [--model mobilenet_v2] [--threads 1]

Each side is a process of its own with an empty feature cache; the pass embeds the training and the
validation images and the prompts and captions. Exits with 1 where the suites together cost more
than 1.15 passes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from forked import compare
from threadpoolctl import threadpool_limits

from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.evaluation.datasets.prompts import prompts
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.encode import embed_images, embed_texts
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec, TowerSpec
from vlkd_cli.towers.assemble import assemble

SUITES = (
    "zero_shot",
    "retrieval",
    "knn",
    "clustering",
    "linear_probe",
    "few_shot",
    "feature_analysis",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--val", type=int, default=300)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    head = {"name": "linear", "width": 64}
    image = assemble(
        "image",
        TowerSpec.model_validate(
            {"builder": "torchvision", "model": given.model, "pretrained": False, "head": head}
        ),
    )
    config = {"layers": 2, "width": 64, "heads": 2}
    text = assemble(
        "text", TowerSpec.model_validate({"builder": "openclip", "config": config, "head": head})
    )
    train = Shapes(num_samples=given.train, split="train")
    val = Shapes(num_samples=given.val, split="val")
    data = {"reader": "shapes", "num_samples": given.val, "split": "val"}
    train_data = {"reader": "shapes", "num_samples": given.train, "split": "train"}
    specs = []
    for name in SUITES:
        keys: dict[str, object] = {"suite": name, "data": data}
        if name in ("knn", "linear_probe", "few_shot"):
            keys["train_data"] = train_data
        specs.append(EvalSpec.model_validate(keys))
    folder = tempfile.TemporaryDirectory()

    def fresh() -> Subject:
        return Subject(image, text, cache=Path(tempfile.mkdtemp(dir=folder.name)))

    def suites() -> Callable[[], object]:
        subject = fresh()
        return lambda: run_suites(subject, specs)

    def one_pass() -> Callable[[], object]:
        subject = fresh()

        def work() -> None:
            for reader in (train, val):
                embed_images(subject, reader)
            assert val.classes is not None
            own = [
                text for several in prompts(val.classes, val, None, "shapes") for text in several
            ]
            embed_texts(subject, own)
            embed_texts(
                subject, [caption for index in range(len(val)) for caption in val.captions(index)]
            )

        return work

    with threadpool_limits(given.threads), folder:
        ours, peer = compare(suites, one_pass, given.rounds)
    ratio = ours.cpu / peer.cpu
    print(
        f"{len(SUITES)} suites: {ours.cpu:.1f} s CPU ({ours.wall:.1f} s wall); one pass:"
        f" {peer.cpu:.1f} s ({peer.wall:.1f} s)"
    )
    print(f"ratio {ratio:.3f} (ceiling 1.15)")
    return 0 if ratio <= 1.15 else 1


if __name__ == "__main__":
    sys.exit(main())
