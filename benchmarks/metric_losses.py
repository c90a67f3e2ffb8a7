"""The objectives over labeled rows against the same losses of pytorch-metric-learning through
`metric`: value and gradient, float32, one thread.

    python benchmarks/metric_losses.py [--rounds 3] [--only triplet]

1,024 rows of 512 values, four of each of 256 classes. Both sides take turns, each in a process of
its own. Prints CPU time, peak memory, their ratios and the processor. Exits with 1 where `triplet`
is not twice as fast as TripletMarginLoss in 40 % of its memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from forked import compare, report
from processor import processor

from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import Progress

COUNT, WIDTH, PER_CLASS = 1024, 512, 4
NUM_CLASSES = COUNT // PER_CLASS
Keys = Mapping[str, Any]


class Row(NamedTuple):
    """A distiller, the keys of `metric` for the same loss, and the floors of time and memory."""

    name: str
    keys: Keys
    peer: Keys
    faster: float | None = None
    smaller: float | None = None


def mined(miner: str) -> dict[str, Any]:
    return {"name": "TripletMarginMiner", "margin": 0.2, "type_of_triplets": miner}


TRIPLET = {"name": "TripletMarginLoss", "margin": 0.2}
ROWS = [
    Row("triplet", {}, {"loss": TRIPLET}, 2.0, 2.5),
    Row("triplet", {"miner": "semihard"}, {"loss": TRIPLET, "miner": mined("semihard")}, 2.0, 2.5),
    Row("triplet", {"miner": "batch_hard"}, {"loss": TRIPLET, "miner": "BatchHardMiner"}),
    Row("supcon", {}, {"loss": "SupConLoss"}),
    Row(
        "multi_similarity",
        {},
        {"loss": "MultiSimilarityLoss", "miner": {"name": "MultiSimilarityMiner", "epsilon": 0.1}},
    ),
    Row(
        "margin_softmax",
        {"num_classes": NUM_CLASSES},
        {"loss": {"name": "ArcFaceLoss", "num_classes": NUM_CLASSES, "margin": 28.6479}},
    ),
    Row(
        "proxy_anchor",
        {"num_classes": NUM_CLASSES},
        {"loss": {"name": "ProxyAnchorLoss", "num_classes": NUM_CLASSES}},
    ),
]


def work(
    name: str, keys: Keys, count: int = COUNT, width: int = WIDTH
) -> Callable[[], Callable[[], object]]:
    """Value and gradient of a distiller."""

    def prepare() -> Callable[[], object]:
        torch.manual_seed(0)
        rows, labels = torch.randn(count, width, requires_grad=True), torch.arange(count)
        loss: Any = make("distiller", name, dict(keys))
        loss.setup((width,), None)
        return lambda: loss((rows,), labels=labels // PER_CLASS, progress=Progress()).backward()

    return prepare


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of distillers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(processor())
    fine = True
    for row in ROWS:
        if given.only and row.name not in given.only:
            continue
        # Once before the fork, so that no side pays for imports and first calls.
        sides = (row.name, row.keys), ("metric", row.peer)
        for name, keys in sides:
            work(name, keys, 16, 8)()()
        ours, peer = (work(name, keys) for name, keys in sides)
        costs = compare(ours, peer, given.rounds)
        what = " ".join([row.name, *(str(value) for value in row.keys.values())])
        fine &= report(what, *costs, faster=row.faster, smaller=row.smaller)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
