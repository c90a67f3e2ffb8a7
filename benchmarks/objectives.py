"""Every objective, end to end: a short training on rendered shapes, then zero-shot accuracy and
retrieval.

    python benchmarks/objectives.py [NAME ...] [--steps 160] [--folder runs/objectives] [--markdown]

First a teacher pair is trained by InfoNCE, twice as long. Objectives between two towers then start
afresh with both; one-way objectives teach a fresh image tower by the teacher's text tower;
objectives between pairs teach a fresh pair. Objectives that leave something open (a rotation, the
other modality) are joined by a little InfoNCE, and the table shows it. The keys are those of towers
of some 100,000 weights and batches of 64, not the papers', and the table shows which were set.

Prints the mean loss over the first and over the last tenth of the steps (of the named objective
alone, without its weight), CPU seconds of training and evaluation, zero-shot top-1 and R@1 both
ways, and chance below; exits with 1 where a loss does not fall or neither score is above twice its
chance. A trial whose recipe is unchanged since it was run in the folder is not run again: its
outcome is read.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import timm  # noqa: F401  imported for the forks
import torch
import transformers  # noqa: F401

from vlkd_cli.app import main as main_of_vlkd
from vlkd_cli.console import print_table

FRESH_IMAGE = (
    "  image: {builder: timm, model: resnet10t, image_size: 32, config: {channels: [16, 32, 64,"
    " 128]}, head: {name: linear, width: 128}}"
)
FRESH_TEXT = (
    "  text: {builder: huggingface, config: {layers: 1, width: 64, heads: 2}, tokenizer: trained,"
    " head: {name: linear, width: 128}}"
)
KEPT_TEXT = "  text: {run: TEACHER, tower: text, train: none}"
KEPT_PAIR = (
    "  teacher_image: {run: TEACHER, tower: image, train: none}\n  teacher_text: {run: TEACHER,"
    " tower: text, train: none}"
)
TOWERS = {
    "two towers": [FRESH_IMAGE, FRESH_TEXT],
    "text teaches": [FRESH_IMAGE, KEPT_TEXT],
    "pair teaches": [FRESH_IMAGE, FRESH_TEXT, KEPT_PAIR],
}
LITTLE_INFONCE = "{name: infonce, weight: 0.1, student: image, teacher: text}"
COLUMNS = [
    "objective",
    "form",
    "keys",
    "first loss",
    "last loss",
    "CPU s",
    "zero-shot",
    "R@1 i2t",
    "R@1 t2i",
]


class Trial(NamedTuple):
    """Which towers there are, the keys of the objective under trial, what is added to it, and
    further keys of `data`."""

    form: str
    keys: str = ""
    beside: str | None = None
    data: str = ""


TRIALS = {
    "infonce": Trial("two towers"),
    "siglip": Trial("two towers"),
    "vicreg": Trial("two towers"),
    "barlow_twins": Trial("two towers"),
    "unicl": Trial("two towers"),
    "protoclip": Trial(
        "two towers", "num_prototypes: 48, contrastive_episodes: 0", data=", episode_samples: 3200"
    ),
    "cross_entropy": Trial("two towers", "num_classes: 48, student: image", LITTLE_INFONCE),
    "simcse": Trial(
        "two towers",
        "student: text, teacher: text@second",
        LITTLE_INFONCE,
        ", views: {second: {name: none}}",
    ),
    "simreg": Trial("text teaches"),
    "rkd": Trial("text teaches", "", LITTLE_INFONCE),
    "compress": Trial("text teaches", "num_queues: 1, queue_size: 1024"),
    "seed": Trial("text teaches", "queue_size: 1024, teacher_temperature: 0.01"),
    "dino": Trial("text teaches", "num_prototypes: 1024"),
    "protocpc": Trial("text teaches", "num_prototypes: 1024"),
    "affinity": Trial("pair teaches", "teacher_logit_scale: 20, logit_scale: 20"),
    "feature_distance": Trial("pair teaches", "weight: 200"),
    "interactive_contrast": Trial("pair teaches"),
    "relational_kl": Trial("pair teaches", "teacher_logit_scale: 20"),
    "gradient_match": Trial("pair teaches", "weight: 100, teacher_logit_scale: 20", LITTLE_INFONCE),
    "reinforced": Trial(
        "pair teaches", "teacher_logit_scales: [20], contrastive_weight: 0.25, distill_weight: 0.75"
    ),
}


class Outcome(NamedTuple):
    """First and last loss, CPU seconds, scores, and their chance levels."""

    first: float
    last: float
    seconds: float
    zero_shot: float
    image_to_text: float
    text_to_image: float
    zero_shot_chance: float
    image_to_text_chance: float
    text_to_image_chance: float

    @property
    def has_learned(self) -> bool:
        retrieved = (
            self.image_to_text > 2 * self.image_to_text_chance
            and self.text_to_image > 2 * self.text_to_image_chance
        )
        return self.last < self.first and (retrieved or self.zero_shot > 2 * self.zero_shot_chance)


def recipe(name: str, trial: Trial, teacher: Path, steps: int) -> str:
    """The recipe of a trial as YAML."""
    objective = f"{{name: {name}{', ' if trial.keys else ''}{trial.keys}}}"
    return "\n".join(
        [
            "towers:",
            *[line.replace("TEACHER", str(teacher)) for line in TOWERS[trial.form]],
            "distillers:",
            *[f"  - {distiller}" for distiller in (objective, trial.beside) if distiller],
            f"data: {{reader: shapes, num_samples: 10_000, size_px: 32, workers: 0{trial.data}}}",
            (
                f"train: {{epochs: 100, steps: {steps}, batch_size: 64, clip_grad_norm: 1,"
                " log_every_steps: 1}"
            ),
            "optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.1}",
            "schedule: {warmup_steps: 30}",
            "evals:",
            "  - {suite: zero_shot, data: {reader: shapes, split: val, size_px: 32}}",
            "  - {suite: retrieval, data: {reader: shapes, split: val, size_px: 32}}",
            "",
        ]
    )


def metrics_of(run: Path, suite: str) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and chance levels of a suite's last result."""
    file = max(run.glob(f"results/*/{suite}-*.json"))
    result = json.loads(file.read_text(encoding="utf-8"))
    return result["metrics"], result["chance"]


def train(run: Path, text: str) -> float:
    """Run `vlkd train` on a recipe in a new folder, in a fork, so that nothing is imported twice;
    CPU seconds."""
    shutil.rmtree(run, ignore_errors=True)
    file = run.with_suffix(".yaml")
    file.write_text(text, encoding="utf-8")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            torch.set_num_threads(1)
            main_of_vlkd(["train", str(file), "--run", str(run), "--quiet"])
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    if status != 0:
        raise SystemExit(f"vlkd train {file} failed; run it to see why.")
    return used.ru_utime + used.ru_stime


def losses_of(run: Path, name: str) -> tuple[float, float]:
    """Mean of an objective's values over the first and the last tenth of the steps."""
    with (run / "metrics.csv").open(encoding="utf-8") as stream:
        losses = [
            float(row["value"]) for row in csv.DictReader(stream) if row["name"] == f"train/{name}"
        ]
    tenth = max(len(losses) // 10, 1)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def outcome_of(name: str, trial: Trial, folder: Path, steps: int) -> Outcome:
    """Train by a recipe and read what was recorded, unless that has been done before."""
    run, text = folder / name, recipe(name, trial, folder / "teacher", steps)
    kept = folder / f"{name}.json"
    if kept.exists() and run.with_suffix(".yaml").read_text(encoding="utf-8") == text:
        return Outcome(**json.loads(kept.read_text(encoding="utf-8")))
    kept.unlink(missing_ok=True)
    seconds = train(run, text)
    (zero_shot, chance), (retrieval, retrieval_chance) = (
        metrics_of(run, "zero_shot"),
        metrics_of(run, "retrieval"),
    )
    ways = [f"{way}_R@1" for way in ("image_to_text", "text_to_image")]
    scores = [zero_shot["top1"], *(retrieval[way] for way in ways)]
    chances = [chance["top1"], *(retrieval_chance[way] for way in ways)]
    outcome = Outcome(*losses_of(run, name), seconds, *scores, *chances)
    kept.write_text(json.dumps(outcome._asdict()), encoding="utf-8")
    return outcome


def row_of(name: str, trial: Trial, outcome: Outcome) -> list[str]:
    """The table's row of a trial."""
    keys = " ".join([trial.keys + trial.data] + (["+ 0.1 infonce"] if trial.beside else [])).strip(
        " ,"
    )
    losses = [f"{value:.4g}" for value in (outcome.first, outcome.last)]
    scores = [
        f"{value:.3f}"
        for value in (outcome.zero_shot, outcome.image_to_text, outcome.text_to_image)
    ]
    return [name, trial.form, keys, *losses, f"{outcome.seconds:.0f}", *scores]


def print_markdown(rows: Sequence[Sequence[str]]) -> None:
    """The table as Markdown; names and keys as code."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * 3}{'---:|' * (len(COLUMNS) - 3)}")
    for name, form, keys, *numbers in rows:
        cells = [f"`{name}`" if form else name, form, f"`{keys}`" if keys else "", *numbers]
        print(f"| {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=", ".join(TRIALS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    teacher = options.folder / "teacher"
    if not (teacher / "checkpoints").exists():
        train(teacher, recipe("infonce", TRIALS["infonce"], teacher, 2 * options.steps))
    rows, fine, chances = [], True, [0.0] * 3
    for name in options.names or TRIALS:
        outcome = outcome_of(name, TRIALS[name], options.folder, options.steps)
        fine &= outcome.has_learned
        chances = [
            outcome.zero_shot_chance,
            outcome.image_to_text_chance,
            outcome.text_to_image_chance,
        ]
        rows.append(row_of(name, TRIALS[name], outcome))
        print(
            f"{' '.join(rows[-1])}{'' if outcome.has_learned else '  HAS NOT LEARNED'}",
            file=sys.stderr,
            flush=True,
        )
    rows.append(["chance", "", "", "", "", "", *(f"{chance:.3f}" for chance in chances)])
    if options.markdown:
        print_markdown(rows)
    else:
        print_table("objectives", COLUMNS, rows)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
