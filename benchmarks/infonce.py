"""InfoNCE in tiles against open_clip's ClipLoss: value and gradient, float32, width 512, one
thread.

    python benchmarks/infonce.py [--sizes 4096 8192 16384] [--rounds 1] [--alone 65536]

Prints CPU time, peak memory beyond the inputs, and their ratios for each batch size, and exits with
1 where a floor does not hold. `--alone` measures vlkd only, where the peer would need some 70 GiB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from forked import compare, cost, report

from vlkd_cli.distillers.infonce import InfoNCE

FLOORS = {8192: (1.5, 10.0), 16384: (2.0, 16.0)}
WIDTH = 512


def features(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(rows, WIDTH), dim=1)
    text = F.normalize(image + 1.5 * F.normalize(torch.randn(rows, WIDTH), dim=1), dim=1)
    return image.requires_grad_(), text.requires_grad_()


def ours(rows: int) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        image, text = features(rows)
        loss = InfoNCE(logit_scale=50.0)
        return lambda: loss(image, text).backward()

    return prepare


def peer(rows: int) -> Callable[[], Callable[[], object]]:
    from open_clip.loss import ClipLoss

    def prepare() -> Callable[[], object]:
        image, text = features(rows)
        scale = torch.tensor(50.0, requires_grad=True)
        loss = ClipLoss()
        return lambda: loss(image, text, scale).backward()

    return prepare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--alone", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fine = True
    for rows in options.sizes:
        faster, smaller = FLOORS.get(rows, (None, None))
        fine &= report(
            f"InfoNCE N={rows}",
            *compare(ours(rows), peer(rows), options.rounds),
            faster=faster,
            smaller=smaller,
        )
    if options.alone:
        alone = cost(ours(options.alone))
        print(f"InfoNCE N={options.alone}: vlkd {alone.cpu:.1f} s CPU, {alone.peak_mib:.0f} MiB")
        fine &= alone.peak_mib < 4096
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
