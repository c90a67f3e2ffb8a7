"""Both towers frozen and cached, from the second epoch on, against open_clip with both locked,
where only the logit scale learns.

One thread.

    python benchmarks/both_frozen.py [--precisions fp32 bf16] [--rounds 3] [--steps 3]
    [--peer-python PATH]

vlkd's towers carry a linear head each, which learn together with the scale: more than the peer,
whose model has no heads. Exits with 1 where the ratio of CPU time is below 200.
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
from turns import Cost, epochs_needed, report, take_turns

FLOOR = 200.0
EPISODE_STEPS = 400


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument(
        "--rounds", type=int, default=3, help="epochs of each side that are counted"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=3,
        help=f"of the peer's epoch; vlkd's has {EPISODE_STEPS}, to be measurable",
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="interpreter of an environment that open_clip_train works in",
    )
    options = parser.parse_args()
    fine = True
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
            data = {"augment": {"name": "none"}, "episode_samples": EPISODE_STEPS * BATCH}
            heads = {"train": "head", "head": {"name": "linear", "width": 256}, "cache": True}
            towers = {"image": {**IMAGE, **heads}, "text": {**TEXT, **heads}}
            trainings = {
                "ours": start_vlkd(
                    folder, recipe_for(folder, **same, data=data, towers=towers), "vlkd"
                ),
                "peer": start_open_clip(
                    folder,
                    "open_clip",
                    python=options.peer_python,
                    options=(*LOCKS["image"], *LOCKS["text"]),
                    **same,
                ),
            }
            costs = take_turns(trainings, rounds=options.rounds)
        ours, peer = (
            _per_step(costs["ours"], EPISODE_STEPS),
            _per_step(costs["peer"], options.steps),
        )
        fine &= report(f"both frozen, {precision}", ours, peer, samples=BATCH, floor=FLOOR)
    return 0 if fine else 1


def _per_step(cost: Cost, steps: int) -> Cost:
    return Cost(cost.cpu / steps, cost.wall / steps)


if __name__ == "__main__":
    sys.exit(main())
