"""A step with stored teachers (`cache: {draws: 1}`), from the second epoch on, against the same
step without teachers. One thread, in turns.

    python benchmarks/stored_teachers.py [--rounds 5] [--steps 3]

The teachers are a pair of ViT-Ti/32 size, the student likewise; random crops. Exits with 1 where
the stored teachers, their objective included, cost more than 5 % of the step's CPU time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from training_sides import BATCH, IMAGE, TEXT, draw_data, recipe_for, start_vlkd
from turns import epochs_needed, take_turns

LARGEST_SHARE = 0.05
FROZEN: dict[str, Any] = {"train": "none", "cache": {"draws": 1}}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs that are counted")
    parser.add_argument("--steps", type=int, default=3, help="of an epoch")
    options = parser.parse_args()
    pair = {"name": "infonce", "student": "image", "teacher": "text"}
    students = {"image": dict(IMAGE), "text": dict(TEXT)}
    teachers = {"teacher_image": {**IMAGE, **FROZEN}, "teacher_text": {**TEXT, **FROZEN}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_data(folder, options.steps * BATCH)
        same = {
            "reader": "csv",
            "epochs": epochs_needed(options.rounds),
            "precision": "fp32",
            "workers": 0,
        }
        sides: dict[str, dict[str, Any]] = {
            "stored": {
                "towers": {**students, **teachers},
                "distillers": [pair, {"name": "interactive_contrast"}],
            },
            "without": {"towers": students, "distillers": [pair]},
        }
        trainings = {
            side: start_vlkd(folder, recipe_for(folder, **same, **sections), side)
            for side, sections in sides.items()
        }
        costs = take_turns(trainings, rounds=options.rounds)
    share = costs["stored"].cpu / costs["without"].cpu - 1
    seconds = [costs[side].cpu / options.steps for side in sides]
    print(
        f"stored teachers: {seconds[0]:.3f} s of CPU a step, without {seconds[1]:.3f} s:"
        f" {share:+.1%}   (at most {LARGEST_SHARE:+.0%} wanted)"
    )
    return 0 if share <= LARGEST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
