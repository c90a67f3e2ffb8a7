"""ELEVATER's search for learning rate and weight decay on frozen features, against trainings one
after another by autograd.

    python benchmarks/elevater_search.py [--rows 940] [--width 512] [--classes 47] [--epochs 3]

The peer is the toolkit's loop in plain torch: a shuffling DataLoader, BatchNorm1d without weights,
Linear, SGD with momentum, a validation after every epoch. It gets the features already computed, so
the backbone's passes, which the toolkit repeats in every epoch, do not count. Prints the time of
the whole search of both, their ratio, and whether they chose the same pair. Exits with 1 where they
did not, or where the search is slower.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vlkd_cli.elevater.learners import ProbeLearner, Task
from vlkd_cli.elevater.protocol import Learner
from vlkd_cli.elevater.sweep import Search, Trial, search


class OneByOne:
    """Trains each trial on its own, by autograd."""

    def __init__(self, task: Task, features: Tensor, initial: Tensor) -> None:
        self.task, self.features, self.initial = task, features, initial

    def curve(
        self, trial: Trial, train: Sequence[int], valid: Sequence[int], epochs: int
    ) -> list[float]:
        rows = torch.tensor(train)
        dataset = TensorDataset(self.features[rows], self.task.train_targets[rows])
        loader = DataLoader(
            dataset, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0)
        )
        linear = nn.Linear(self.features.shape[1], self.task.num_classes)
        network = nn.Sequential(nn.BatchNorm1d(self.features.shape[1], affine=False), linear)
        with torch.no_grad():
            linear.weight.copy_(self.initial)
            linear.bias.zero_()
        optimizer = torch.optim.SGD(
            network.parameters(), lr=trial.lr, momentum=0.9, weight_decay=trial.weight_decay
        )
        loss_of, scores = nn.CrossEntropyLoss(), []
        for _ in range(epochs):
            network.train()
            for features, targets in loader:
                if len(features) == 1:
                    continue
                optimizer.zero_grad()
                loss_of(network(features), targets).backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                outputs = network(self.features[list(valid)]).softmax(-1)
            scores.append(self.task.score(outputs, self.task.train_targets[list(valid)]))
        return scores

    def curves(
        self, trials: Sequence[Trial], *, train: Sequence[int], valid: Sequence[int], epochs: int
    ) -> list[list[float]]:
        return [self.curve(trial, train, valid, epochs) for trial in trials]


def searched(learner: Learner | OneByOne, rows: int, epochs: int) -> tuple[Search, float]:
    """The search on four fifths of the rows, and its seconds."""
    train, valid = list(range(rows // 5, rows)), list(range(rows // 5))
    start = time.perf_counter()
    found = search(
        lambda trials: [
            max(curve) for curve in learner.curves(trials, train=train, valid=valid, epochs=epochs)
        ]
    )
    return found, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=940)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=47)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centers = nn.functional.normalize(
        torch.randn(options.classes, options.width, generator=generator), dim=1
    )
    labels = torch.arange(options.rows) % options.classes
    features = 2 * centers[labels] + 0.25 * torch.randn(
        options.rows, options.width, generator=generator
    )
    task = Task("accuracy", options.classes, False, labels, labels)
    # A start that knows little, so that the settings matter.
    start = nn.functional.normalize(
        centers + 0.2 * torch.randn(centers.shape, generator=generator), dim=1
    )
    own, seconds = searched(
        ProbeLearner(task, features, features, initial=start, device=torch.device("cpu")),
        options.rows,
        options.epochs,
    )
    peer, peer_seconds = searched(OneByOne(task, features, start), options.rows, options.epochs)
    shared = [
        (own.visited[lr][index], score)
        for lr in peer.visited
        for index, score in peer.visited[lr].items()
        if index in own.visited[lr]
    ]
    for name, found, taken in (("vlkd", own, seconds), ("one by one", peer, peer_seconds)):
        print(
            f"{name:10} {taken:7.2f} s  {found.num_trainings} trainings, lr {found.best.lr:g},"
            f" weight decay {found.best.weight_decay:g}"
        )
    print(
        f"{'ratio':10} {peer_seconds / seconds:7.2f}    largest difference of a score"
        f" {max(abs(one - two) for one, two in shared):.4f}"
    )
    return 0 if own.best == peer.best and seconds <= peer_seconds else 1


if __name__ == "__main__":
    sys.exit(main())
