"""SentEval's classifier, trained for several weight decays in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class ClassifierSettings(NamedTuple):
    """How a classifier is trained. The defaults are those of published tables; `FAST` is SentEval's
    setting for prototyping."""

    hidden: int = 0
    """Units of the hidden layer; 0: a linear classifier."""
    optimizer: str = "adam"
    batch_size: int = 64
    tenacity: int = 5
    """Training ends at the check after this many that brought no improvement, counted over the
    whole training."""
    epoch_size: int = 4
    """Epochs between two checks."""
    max_epoch: int = 200
    dropout: float = 0.0


PAPER = ClassifierSettings()
FAST = ClassifierSettings(optimizer="rmsprop", batch_size=128, tenacity=3, epoch_size=2)


class SoftmaxGrid:
    """G classifiers that differ in weight decay only.

    SentEval resets its seeds for every classifier, so those of one grid start from the same weights
    and see the same batches: they are trained here as one wide layer, each with the early stopping
    of its own, and come out as if trained one by one.

    Args:
        width: D, of the features.
        classes: C.
        penalties: the weight decays, G of them.
        settings: see `ClassifierSettings`.
        seed: of the start, the batches and the held-out part.
        device: where it trains.

    Source: SentEval, senteval/tools/classifier.py (MLP). The hidden layer is Linear, Dropout,
        Sigmoid, Linear, as its code has it.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        penalties: Sequence[float],
        *,
        settings: ClassifierSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings, self.device, self.grid = settings, device, len(penalties)
        self._order = np.random.RandomState(seed)
        sizes = [width, settings.hidden, classes] if settings.hidden else [width, classes]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(before, after) for before, after in pairwise(sizes)]
        self._parameters: list[Tensor] = []
        for layer in layers:
            self._parameters.append(
                layer.weight.detach().T.repeat(self.grid, 1, 1).to(device).requires_grad_()
            )
            self._parameters.append(
                layer.bias.detach().repeat(self.grid, 1, 1).to(device).requires_grad_()
            )
        self._best = [parameter.detach().clone() for parameter in self._parameters]
        self._penalties = torch.tensor(penalties, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._dropout = torch.Generator(device).manual_seed(seed)

    def fit(
        self, features: Tensor, labels: Tensor, dev: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Train; save each classifier as it was at its best check on the development rows.

        Args:
            features: `[N, D]` float32.
            labels: `[N]` int64.
            dev: the development rows; None: a random 5 % of the given ones, which are then not
                trained on.
        """
        if dev is None:
            permutation = torch.from_numpy(self._order.permutation(len(features)))
            held = max(int(0.05 * len(features)), 1)
            dev = features[permutation[:held]], labels[permutation[:held]]
            features, labels = features[permutation[held:]], labels[permutation[held:]]
        features, labels = features.to(self.device), labels.to(self.device)
        optimizer = _optimizer(self.settings.optimizer, self._parameters)
        best = [-1.0] * self.grid
        misses = [0] * self.grid
        stopped = [False] * self.grid
        epoch = 0
        while not all(stopped) and epoch <= self.settings.max_epoch:
            for _ in range(self.settings.epoch_size):
                self._train_epoch(features, labels, optimizer)
            epoch += self.settings.epoch_size
            accuracies = self._accuracy(self._parameters, *dev)
            for index, accuracy in enumerate(accuracies):
                if stopped[index]:
                    continue
                if accuracy > best[index]:
                    best[index] = accuracy
                    for saved, parameter in zip(self._best, self._parameters, strict=True):
                        saved[index] = parameter.detach()[index]
                else:
                    stopped[index] = misses[index] >= self.settings.tenacity
                    misses[index] += 1

    def accuracy(self, features: Tensor, labels: Tensor) -> list[float]:
        """Fraction of right answers of each classifier."""
        return self._accuracy(self._best, features, labels)

    def predict(self, features: Tensor) -> Tensor:
        """Classes `[G, N]`."""
        with torch.no_grad():
            blocks = [
                self._logits(self._best, block.to(self.device)).argmax(dim=2).cpu()
                for block in features.split(8192)
            ]
        return torch.cat(blocks, dim=1)

    def _train_epoch(
        self, features: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        permutation = torch.from_numpy(self._order.permutation(len(features))).to(self.device)
        for rows in permutation.split(self.settings.batch_size):
            logits = self._logits(self._parameters, features[rows], train=True)
            target = labels[rows].expand(self.grid, -1)
            # The mean over one classifier's rows, summed over classifiers: none sees the others'
            # gradient.
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), target.flatten(), reduction="sum"
            ) / len(rows)
            optimizer.zero_grad()
            loss.backward()
            for parameter in self._parameters:
                assert parameter.grad is not None
                # What torch's optimizers do with `weight_decay`, with a decay per classifier.
                parameter.grad.add_(parameter.detach() * self._penalties)
            optimizer.step()

    def _logits(
        self, parameters: Sequence[Tensor], features: Tensor, train: bool = False
    ) -> Tensor:
        hidden = torch.matmul(features, parameters[0]) + parameters[1]
        if len(parameters) == 2:
            return hidden
        if train and self.settings.dropout > 0:
            keep = 1 - self.settings.dropout
            mask = torch.empty_like(hidden[0]).bernoulli_(keep, generator=self._dropout)
            hidden = hidden * mask / keep
        return torch.matmul(hidden.sigmoid(), parameters[2]) + parameters[3]

    def _accuracy(
        self, parameters: Sequence[Tensor], features: Tensor, labels: Tensor
    ) -> list[float]:
        with torch.no_grad():
            hits = sum(
                (
                    self._logits(parameters, x.to(self.device)).argmax(dim=2) == y.to(self.device)
                ).sum(dim=1)
                for x, y in zip(features.split(8192), labels.split(8192), strict=True)
            )
        assert isinstance(hits, Tensor)
        return [count / len(features) for count in hits.tolist()]


def _optimizer(name: str, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(parameters, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters)
    raise ValueError(f"no optimizer '{name}' for this classifier")
