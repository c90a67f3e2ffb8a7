"""DINO's and ProtoCPC's cross-entropy over 65536 prototypes, streamed, against the materialized
form: float32, one thread.

    python benchmarks/prototype_cross_entropy.py [--rows 512] [--prototypes 65536] [--rounds 1]

The peer multiplies both sides with the normalized prototypes and takes softmax and log-softmax of
the B x K logits, as the DINO head and loss do. Exits with 1 where vlkd takes more than a third of
its memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from forked import compare, report
from torch import Tensor

from vlkd_cli.distillers.dino import DINO
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.protocpc import ProtoCPC

WIDTH = 256


def features(rows: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, WIDTH, requires_grad=True), torch.randn(rows, WIDTH)


def ours(
    kind: Callable[..., Distiller], rows: int, prototypes: int
) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        student, teacher = features(rows)
        loss = kind(prototypes=prototypes)
        loss.prepare(WIDTH, WIDTH)
        return lambda: loss(student, teacher).backward()

    return prepare


def peer(contrasts: bool, rows: int, prototypes: int) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        student, teacher = features(rows)
        weight = F.normalize(torch.randn(prototypes, WIDTH), dim=1).requires_grad_()
        state = torch.ones(prototypes) if contrasts else torch.zeros(prototypes)

        def step() -> None:
            layer = F.normalize(weight, dim=1)
            logits = F.linear(F.normalize(student, dim=1), layer) / 0.1
            with torch.no_grad():
                raw = F.linear(F.normalize(teacher, dim=1), layer)
                target = (raw / 0.04 if contrasts else (raw - state) / 0.04).softmax(dim=1)
            if contrasts:
                loss = torch.log((logits.exp() * state).sum(dim=1)) - (target * logits).sum(dim=1)
            else:
                loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1)
            loss.mean().backward()

        return step

    return prepare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fine = True
    for kind, contrasts in ((DINO, False), (ProtoCPC, True)):
        sizes = options.rows, options.prototypes
        costs = compare(ours(kind, *sizes), peer(contrasts, *sizes), options.rounds)
        fine &= report(f"{kind.__name__} B={sizes[0]}, K={sizes[1]}", *costs, smaller=3.0)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
