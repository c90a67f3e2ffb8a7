"""CLIP-KD in miniature: what each of its terms adds to a student, on shapes and on photos.

    python benchmarks/clip_kd.py [--data shapes photos] [--terms FD ICL] [--seeds 0 1 2]
                                 [--out runs/clip_kd]

Every row is `distill/clip_kd` with other distillers: the contrastive loss alone, with each term,
and with the three that the paper combines. The teacher of the shapes is the quickstart's pair,
that of the photos `both_frozen`'s (VLKD_DATA names the data). Differences are paired: a seed's
student with the term less the same seed's student alone, with the 95 % interval of Student's t.
Runs that are complete are not repeated. Prints the tables of docs/distil.md.

Source: Yang et al., CLIP-KD, arXiv:2307.12732, table 2: ViT-T/16 taught by ViT-B/16, zero-shot
top-1 on ImageNet.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.reports.csv import read_metrics

PAIR: dict[str, Any] = {"name": "infonce", "student": "image", "teacher": "text"}
FD: dict[str, Any] = {"name": "feature_distance", "weight": 200}
ICL: dict[str, Any] = {"name": "interactive_contrast"}
CRD: dict[str, Any] = {"name": "relational_kl", "teacher_logit_scale": 20}
GD: dict[str, Any] = {"name": "gradient_match", "weight": 100, "teacher_logit_scale": 20}
MASKED = "image@masked"

TERMS: dict[str, list[dict[str, Any]]] = {
    "alone": [PAIR],
    "FD": [PAIR, FD],
    # The student loses three quarters of its patches in both losses.
    "MFD": [{**PAIR, "student": MASKED}, {**FD, "student": [MASKED, "text"]}],
    "ICL": [PAIR, ICL],
    "CRD": [PAIR, CRD],
    "GD": [PAIR, GD],
    "AFD": [PAIR, {"name": "augmented_contrast"}],
    "FD + ICL + CRD": [PAIR, FD, ICL, CRD],
}
PAPER = {
    "alone": 30.55,
    "FD": 34.23,
    "MFD": 34.09,
    "ICL": 33.11,
    "CRD": 31.94,
    "GD": 31.54,
    "AFD": 31.42,
    "FD + ICL + CRD": 34.90,
}
HIDING = (
    "towers.image.masks=drop",
    "data.views={masked: {name: none, mask: {name: random, share: 0.75}}}",
)
PHOTOS = "${VLKD_DATA:-data}/flickr8k_mini"
TEACHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shapes": ("quickstart", ("data.num_samples=6000", "train.batch_size=64", "evals=[]")),
    "photos": ("both_frozen", ("evals=[]",)),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "shapes": (),
    "photos": (
        "towers.image.config.image_size=64",
        "towers.image.config.patch_size=16",
        # As wide as the teacher, whose features FD compares directly.
        "towers.image.config.embed_dim=512",
        "towers.text.config.embed_dim=512",
        f"data={{reader: csv, path: '{PHOTOS}/train.tsv', workers: 0, augment: {{name: none}}}}",
        "train.batch_size=50",
        "train.epochs=16",
        "train.steps=160",
        "evals=[{suite: retrieval, tower: image, data: {reader: csv, path:"
        f" '{PHOTOS}/val.tsv'}}}}]",
    ),
}
METRICS = {
    "shapes": {"zero-shot": "zero_shot", "mean recall": "retrieval"},
    "photos": {"mean recall": "retrieval"},
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Factor of the interval by the number of seeds."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/clip_kd"))
    options = parser.parse_args()
    if len(options.seeds) not in T_95 or "alone" not in options.terms:
        parser.error("intervals need two to five seeds and the row 'alone'")
    for data in options.data:
        teacher = trained(*TEACHERS[data], options.out / f"{data}-teacher")
        scores = {
            term: [
                scored(data, term, seed, teacher, options.out / f"{data}-{term}-{seed}")
                for seed in options.seeds
            ]
            for term in options.terms
        }
        print(f"\n{data}, seeds {', '.join(map(str, options.seeds))}\n\n{table(data, scores)}")
    return 0


def scored(data: str, term: str, seed: int, teacher: Path, run: Path) -> dict[str, float]:
    """The metrics of one student."""
    overrides = (
        *(f"towers.teacher_{half}.run={teacher}" for half in ("image", "text")),
        *SETTINGS[data],
        *(HIDING if term == "MFD" else ()),
        f"distillers={json.dumps(TERMS[term])}",
        f"train.seed={seed}",
    )
    run = trained("distill/clip_kd", overrides, run)
    found = read_metrics(run)
    names = {
        "zero-shot": next((name for name in found if name.endswith("top1")), ""),
        "mean recall": next((name for name in found if name.endswith("mean_recall")), ""),
    }
    return {name: found[names[name]][-1][1] for name in METRICS[data]}


def trained(recipe: str, overrides: tuple[str, ...], run: Path) -> Path:
    """The run's folder, trained unless it is complete."""
    if not (run / "done").is_file():
        status = start_training(
            TrainRequest(recipe=recipe, overrides=list(overrides), run=run, quiet=True)
        )
        if status:
            sys.exit(128 + status)
        (run / "done").touch()
    return run


def table(data: str, scores: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table: each metric's mean and its paired difference to the student alone."""
    names = list(METRICS[data])
    titles = ["term", *(f"{name} | gain, 95 % interval" for name in names), "paper | gain"]
    lines = [f"| {' | '.join(titles)} |", "|---" * (2 * len(names) + 3) + "|"]
    for term, runs in scores.items():
        cells = [term]
        for name in names:
            values = [run[name] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} | {_gain(name, runs, scores['alone'])}")
        cells.append(f"{PAPER[term]:.2f} | {PAPER[term] - PAPER['alone']:+.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gain(name: str, runs: list[dict[str, float]], alone: list[dict[str, float]]) -> str:
    if runs is alone:
        return ""
    gains = [run[name] - base[name] for run, base in zip(runs, alone, strict=True)]
    half = T_95[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))
    signs = f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
    return f"{statistics.mean(gains):+.3f} ± {half:.3f}, up in {signs}"


if __name__ == "__main__":
    sys.exit(main())
