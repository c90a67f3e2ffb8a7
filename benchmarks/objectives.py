"""Every objective, end to end: a short training on drawn shapes, then zero-shot accuracy and retrieval.

    python benchmarks/objectives.py [NAME ...] [--steps 300] [--folder runs/objectives]

First a teacher pair is trained by InfoNCE. Objectives between two towers then start afresh with both; one-way objectives teach a fresh
image tower by the teacher's text tower; objectives between pairs teach a fresh pair. Objectives that leave something open (a rotation,
the other modality) are joined by a little InfoNCE, and the table says so. Prints first and last loss of the named term, seconds of the
whole command, zero-shot top-1 and R@1 both ways; exits with 1 where a loss does not fall or neither score is above twice its chance.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.console import print_table

FRESH_IMAGE = "  image: {builder: torchvision, model: shufflenet_v2_x0_5, image_size: 64, head: {name: linear, width: 128}}"
FRESH_TEXT = "  text: {builder: huggingface, config: {layers: 2, width: 128, heads: 4}, tokenizer: trained}"
KEPT_TEXT = "  text: {run: TEACHER, tower: text, train: none}"
KEPT_PAIR = "  teacher_image: {run: TEACHER, tower: image, train: none}\n  teacher_text: {run: TEACHER, tower: text, train: none}"
TOWERS = {
    "two": [FRESH_IMAGE, FRESH_TEXT],
    "one_way": [FRESH_IMAGE, KEPT_TEXT],
    "pairs": [FRESH_IMAGE, FRESH_TEXT, KEPT_PAIR],
}
LITTLE_INFONCE = "{name: infonce, weight: 0.1, student: image, teacher: text}"


class Trial(NamedTuple):
    """Which towers there are, the objective under trial, what stands beside it, and further lines of the recipe."""

    towers: str
    distiller: str
    beside: str | None = None
    views: str = ""


TRIALS = {
    "infonce": Trial("two", "{name: infonce}"),
    "siglip": Trial("two", "{name: siglip}"),
    "vicreg": Trial("two", "{name: vicreg}"),
    "barlow_twins": Trial("two", "{name: barlow_twins}"),
    "unicl": Trial("two", "{name: unicl}"),
    "protoclip": Trial("two", "{name: protoclip, num_prototypes: 48}"),
    "cross_entropy": Trial("two", "{name: cross_entropy, num_classes: 48, student: image}", LITTLE_INFONCE),
    "simcse": Trial("two", "{name: simcse, student: text, teacher: text@second}", LITTLE_INFONCE, "  views: {second: {name: none}}\n"),
    "simreg": Trial("one_way", "{name: simreg}"),
    "rkd": Trial("one_way", "{name: rkd}", LITTLE_INFONCE),
    "compress": Trial("one_way", "{name: compress, queues: 1, queue_size: 4096}"),
    "seed": Trial("one_way", "{name: seed, queue_size: 4096, teacher_temperature: 0.01}"),
    "dino": Trial("one_way", "{name: dino, prototypes: 1024}"),
    "protocpc": Trial("one_way", "{name: protocpc, prototypes: 1024}"),
    "affinity": Trial("pairs", "{name: affinity}"),
    "feature_distance": Trial("pairs", "{name: feature_distance, weight: 200}"),
    "interactive_contrast": Trial("pairs", "{name: interactive_contrast}"),
    "relational_kl": Trial("pairs", "{name: relational_kl, teacher_logit_scale: 20}"),
    "gradient_match": Trial("pairs", "{name: gradient_match, weight: 10_000, teacher_logit_scale: 20}", LITTLE_INFONCE),
    "reinforced": Trial("pairs", "{name: reinforced, teacher_logit_scales: [20], contrastive_weight: 0.25, distill_weight: 0.75}"),
}


class Outcome(NamedTuple):
    """First and last loss, seconds, scores, and whether the loss fell and a score is above twice its chance."""

    first: float
    last: float
    seconds: float
    zero_shot: float
    image_to_text: float
    text_to_image: float
    learnt: bool


def recipe(trial: Trial, teacher: Path, steps: int) -> str:
    """The recipe of a trial as YAML."""
    distillers = [trial.distiller] + ([trial.beside] if trial.beside else [])
    return "\n".join(
        [
            "towers:",
            *[line.replace("TEACHER", str(teacher)) for line in TOWERS[trial.towers]],
            "distillers:",
            *[f"  - {distiller}" for distiller in distillers],
            "data:\n  reader: shapes\n  num_samples: 10_000\n  size_px: 64\n  workers: 0\n" + trial.views.rstrip(),
            f"train: {{epochs: 100, steps: {steps}, batch_size: 128, clip_grad_norm: 1, log_every_steps: 1}}",
            "optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.1}",
            "schedule: {warmup_steps: 50}",
            "evals:",
            "  - {suite: zero_shot, data: {reader: shapes, split: val, size_px: 64}}",
            "  - {suite: retrieval, data: {reader: shapes, split: val, size_px: 64}}",
            "",
        ]
    )


def metrics_of(run: Path, suite: str) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and chance levels of a suite's last result."""
    file = max(run.glob(f"results/*/{suite}-*.json"))
    result = json.loads(file.read_text(encoding="utf-8"))
    return result["metrics"], result["chance"]


def train(name: str, trial: Trial, folder: Path, steps: int) -> Outcome:
    """Run `vlkd train` on the trial's recipe and read what it recorded."""
    run, file = folder / name, folder / f"{name}.yaml"
    file.write_text(recipe(trial, folder / "teacher", steps), encoding="utf-8")
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "vlkd_cli", "train", str(file), "--run", str(run), "--quiet"], check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - start
    term = f"train/{trial.distiller.split()[1].strip(',}')}"
    with (run / "metrics.csv").open(encoding="utf-8") as stream:
        losses = [float(row["value"]) for row in csv.DictReader(stream) if row["name"] == term]
    tenth = max(len(losses) // 10, 1)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    (zero_shot, chance), (retrieval, retrieval_chance) = metrics_of(run, "zero_shot"), metrics_of(run, "retrieval")
    both = [retrieval[f"{way}_R@1"] for way in ("image_to_text", "text_to_image")]
    above = zero_shot["top1"] > 2 * chance["top1"] or min(both) > 2 * retrieval_chance["image_to_text_R@1"]
    return Outcome(first, last, seconds, zero_shot["top1"], both[0], both[1], above and last < first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=", ".join(TRIALS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "teacher" / "checkpoints").exists():
        train("teacher", TRIALS["infonce"], options.folder, 2 * options.steps)
    rows, fine = [], True
    for name in options.names or TRIALS:
        trial = TRIALS[name]
        outcome = train(name, trial, options.folder, options.steps)
        fine &= outcome.learnt
        label = name + (" + 0.1 infonce" if trial.beside else "")
        scores = [f"{value:.3f}" for value in (outcome.zero_shot, outcome.image_to_text, outcome.text_to_image)]
        rows.append([label, f"{outcome.first:.4g}", f"{outcome.last:.4g}", f"{outcome.seconds:.0f}", *scores])
        print(f"{label}: {' '.join(rows[-1][1:])}{'' if outcome.learnt else '  NOT LEARNT'}", flush=True)
    print_table("objectives", ["objective", "first loss", "last loss", "seconds", "zero-shot", "R@1 i2t", "R@1 t2i"], rows)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
