"""CompRess and SEED over 65536 anchors, streamed, against cloned queues and B x K logits: loss,
gradient and queue, float32, one thread.

    python benchmarks/anchor_queue.py [--rows 256] [--anchors 65536] [--rounds 1]

The peer clones its queues before each product, as the authors' code does to keep autograd from
meeting the later overwriting. Exits with 1 where vlkd takes as much memory as one copy of a queue.
(Not called queue.py: Python's own module has that name.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from forked import compare, report
from torch import Tensor

from vlkd_cli.distillers.compress import CompRess
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.seed import SEED

WIDTH = 512


def features(rows: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, WIDTH, requires_grad=True), torch.randn(rows, WIDTH)


def ours(
    kind: Callable[..., Distiller], rows: int, anchors: int
) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        student, teacher = features(rows)
        loss = kind(queue_size=anchors)
        loss.prepare(WIDTH, WIDTH)

        def step() -> None:
            loss(student, teacher).backward()
            loss.commit(0)

        return step

    return prepare


def peer(own: bool, rows: int, anchors: int) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        student, teacher = features(rows)
        queues = [F.normalize(torch.randn(anchors, WIDTH), dim=1) for _ in range(1 if own else 2)]

        def step() -> None:
            ours, theirs = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
            z, y = ours @ queues[-1].clone().T, theirs @ queues[0].clone().T
            if own:
                z = torch.cat([(ours * theirs).sum(dim=1, keepdim=True), z], dim=1) / 0.2
                y = torch.cat([(theirs * theirs).sum(dim=1, keepdim=True), y], dim=1) / 1e-4
                loss = -(y.softmax(dim=1) * z.log_softmax(dim=1)).sum(dim=1)
            else:
                target = (y / 0.04).softmax(dim=1)
                loss = (
                    target * (target.clamp_min(1e-38).log() - (z / 0.04).log_softmax(dim=1))
                ).sum(dim=1)
            loss.mean().backward()
            with torch.no_grad():
                queues[0][:rows] = theirs
                queues[-1][:rows] = theirs if own else ours

        return step

    return prepare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--anchors", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fine = True
    for kind, own in ((CompRess, False), (SEED, True)):
        sizes = options.rows, options.anchors
        costs = compare(ours(kind, *sizes), peer(own, *sizes), options.rounds)
        fine &= report(f"{kind.__name__} B={sizes[0]}, K={sizes[1]}", *costs)
        fine &= costs[0].peak_mib < options.anchors * WIDTH * 4 / 2**20
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
