"""Training speed against open_clip's own trainer: the same small model, batch, precision, data and
augmentation, one thread.

    python benchmarks/train_throughput.py [--precisions fp32 bf16] [--readers csv webdataset]
    [--rounds 3] [--steps 4] [--workers 0]
                                          [--peer-python PATH]

Both trainers run as they are, epoch by epoch in turns. open_clip_torch 3.3's reader of tar shards
fails (KeyError: 'fname') under a webdataset that marks the ends of shards, as 0.2.100 and later do;
give an interpreter of an environment with `open_clip_torch[training]`, whose webdataset is 0.2.86,
as --peer-python, else shards are left out. Exits with 1 where a ratio of CPU time is below its
floor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from training_sides import BATCH, draw_data, recipe_for, start_open_clip, start_vlkd
from turns import epochs_needed, report, take_turns

FLOORS = {"fp32": 1.3, "bf16": 1.6}


def reads_shards(python: str) -> bool:
    """Whether the interpreter's webdataset is one that open_clip's reader works with: one without
    markers at the ends of shards."""
    code = (
        "import inspect, webdataset.tariterators as t; exit('eof_value' in"
        " inspect.signature(t.tar_file_expander).parameters)"
    )
    return (
        subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precisions", nargs="+", choices=FLOORS, default=["fp32", "bf16"])
    parser.add_argument(
        "--readers", nargs="+", choices=["csv", "webdataset"], default=["csv", "webdataset"]
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="epochs of each side that are counted"
    )
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each side")
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()
    fine = True
    for reader in options.readers:
        if reader == "webdataset" and not reads_shards(options.peer_python):
            print(
                "webdataset: left out, as the peer's reader fails under this version of webdataset;"
                " see --peer-python."
            )
            continue
        for precision in options.precisions:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                draw_data(folder, options.steps * BATCH, shards=max(2, options.workers))
                same = {
                    "reader": reader,
                    "epochs": epochs_needed(options.rounds),
                    "precision": precision,
                    "workers": options.workers,
                }
                trainings = {
                    "ours": start_vlkd(folder, recipe_for(folder, **same), "vlkd"),
                    "peer": start_open_clip(
                        folder, "open_clip", python=options.peer_python, **same
                    ),
                }
                costs = take_turns(trainings, rounds=options.rounds)
            what = f"{reader}, {precision}, {options.workers} workers"
            fine &= report(
                what,
                costs["ours"],
                costs["peer"],
                samples=options.steps * BATCH,
                floor=FLOORS[precision],
            )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
