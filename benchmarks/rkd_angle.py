"""RKD's angle term through Gram matrices against its definition by normalized offsets: value and
gradient, float32, width 512, one thread.

    python benchmarks/rkd_angle.py [--sizes 128 512] [--rounds 1] [--alone 2048]

The peer builds the N x N x D offsets and the N x N x N cosines of both sides, as lenscloth/RKD
does. Exits with 1 where a floor does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from forked import compare, cost, report
from torch import Tensor

from vlkd_cli.distillers.rkd import RKD

FLOORS = {512: (5.0, 50.0)}
WIDTH = 512


def features(rows: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, WIDTH, requires_grad=True), F.normalize(
        torch.randn(rows, WIDTH), dim=1
    )


def cosines(rows: Tensor) -> Tensor:
    """Cosines of all angles, `[N, N, N]`."""
    offsets = F.normalize(rows[None, :] - rows[:, None], dim=2)
    return torch.bmm(offsets, offsets.transpose(1, 2))


def ours(rows: int) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        student, teacher = features(rows)
        loss = RKD(distance_weight=0.0, angle_weight=1.0, normalize="none")
        return lambda: loss(student, teacher).backward()

    return prepare


def peer(rows: int) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        student, teacher = features(rows)

        def step() -> None:
            with torch.no_grad():
                target = cosines(teacher)
            F.smooth_l1_loss(cosines(student), target).backward()

        return step

    return prepare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--alone", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fine = True
    for rows in options.sizes:
        faster, smaller = FLOORS.get(rows, (None, None))
        fine &= report(
            f"RKD angle N={rows}",
            *compare(ours(rows), peer(rows), options.rounds),
            faster=faster,
            smaller=smaller,
        )
    if options.alone:
        alone = cost(ours(options.alone))
        print(f"RKD angle N={options.alone}: vlkd {alone.cpu:.1f} s CPU, {alone.peak_mib:.0f} MiB")
        fine &= alone.peak_mib < 2048
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
