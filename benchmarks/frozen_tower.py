"""A step with one tower frozen and cached, from the second epoch on, against open_clip's step with
that tower locked; and against the same vlkd step without that tower at all. One thread.

    python benchmarks/frozen_tower.py [--frozen image text] [--precisions fp32 bf16] [--rounds 3]
    [--steps 4] [--peer-python PATH]

With the image tower frozen no image is decoded. Exits with 1 where the ratio of CPU time to
--lock-image is below 2, or where the frozen tower costs more than 5 % of the step. (--lock-text
leaves the peer an image tower to train, which is most of the step on either side.)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from training_sides import (
    BATCH,
    IMAGE,
    LOCKS,
    TEXT,
    draw_data,
    recipe_for,
    start_open_clip,
    start_vlkd,
)
from turns import epochs_needed, report, take_turns

FLOORS = {"image": 2.0, "text": None}
LARGEST_SHARE = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frozen", nargs="+", choices=FLOORS, default=["image", "text"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument(
        "--rounds", type=int, default=3, help="epochs of each side that are counted"
    )
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="interpreter of an environment that open_clip_train works in",
    )
    options = parser.parse_args()
    fine = True
    for frozen in options.frozen:
        for precision in options.precisions:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                draw_data(folder, options.steps * BATCH)
                same = {
                    "reader": "csv",
                    "epochs": epochs_needed(options.rounds),
                    "precision": precision,
                    "workers": 0,
                }
                towers = {"image": dict(IMAGE), "text": dict(TEXT)}
                towers[frozen] |= {"train": "none", "cache": True}
                # Augmented at random, an image has no features to keep.
                changed = {"towers": towers} | (
                    {"data": {"augment": {"name": "none"}}} if frozen == "image" else {}
                )
                recipe = recipe_for(folder, **same, **changed)
                trainings = {
                    "ours": start_vlkd(folder, recipe, "vlkd"),
                    "without": start_vlkd(
                        folder, recipe, "vlkd_without_frozen", "vlkd_without_frozen"
                    ),
                    "peer": start_open_clip(
                        folder,
                        "open_clip",
                        python=options.peer_python,
                        options=LOCKS[frozen],
                        **same,
                    ),
                }
                costs = take_turns(trainings, rounds=options.rounds)
            what = f"{frozen} frozen, {precision}"
            fine &= report(
                what,
                costs["ours"],
                costs["peer"],
                samples=options.steps * BATCH,
                floor=FLOORS[frozen],
            )
            share = costs["ours"].cpu / costs["without"].cpu - 1
            print(
                f"{what}: {share:+.1%} CPU time of the same step without the {frozen} tower   (at"
                f" most {LARGEST_SHARE:+.0%} wanted)"
            )
            fine &= share <= LARGEST_SHARE
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
