"""SentEval's supervised relatedness: a small regressor from the features of two sentences to a
score from 1 to 5."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlkd_cli.evaluation.metrics.correlation import pearson, spearman

CLASSES = 5

Floats = NDArray[np.float64]


class RelatednessScores(NamedTuple):
    """Figures of the regressor that was best on the development pairs."""

    dev_pearson: float
    pearson: float
    spearman: float
    mse: float


def soft_targets(scores: Floats) -> Tensor:
    """Scores as probabilities of the classes 1 to 5, `[N, 5]`: a score between two integers is
    shared between them.

    A score below 1 (STS-Benchmark begins at 0) gives a row that sums to the score, as in SentEval.
    """
    values = torch.from_numpy(scores)
    classes = torch.arange(1, CLASSES + 1, dtype=values.dtype)
    return (1 - (values[:, None] - classes).abs()).clamp(min=0).to(torch.float32)


def relatedness(
    train: tuple[Tensor, Floats],
    dev: tuple[Tensor, Floats],
    test: tuple[Tensor, Floats],
    *,
    seed: int = 1111,
    device: torch.device,
) -> RelatednessScores:
    """Train on the training pairs, select the state that is best on the development pairs, and
    score the test pairs.

    A linear layer and a softmax learn the soft targets by mean squared error (Adam, batches of 64);
    the prediction is the expected class. Every 50 epochs the development Pearson is looked at; the
    fourth look without improvement, or epoch 1,000, ends the training.

    Args:
        train: features `[N, D]` and scores `[N]`.

    Source: SentEval, senteval/tools/relatedness.py.
    """
    order = np.random.RandomState(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train[0].shape[1], CLASSES)
    layer.to(device)
    features, targets = train[0].to(device), soft_targets(train[1]).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    best, misses, epoch = -1.0, 0, 0
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    while epoch <= 1000:
        for _ in range(50):
            for rows in torch.from_numpy(order.permutation(len(features))).to(device).split(64):
                loss = nn.functional.mse_loss(layer(features[rows]).softmax(dim=1), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        epoch += 50
        found = float(np.nan_to_num(pearson(_predict(layer, dev[0], device), dev[1])))
        if found > best:
            best, state = (
                found,
                {name: tensor.clone() for name, tensor in layer.state_dict().items()},
            )
        elif misses >= 3:
            break
        else:
            misses += 1
    layer.load_state_dict(state)
    predicted = _predict(layer, test[0], device)
    mse = float(np.mean((predicted - test[1]) ** 2))
    return RelatednessScores(best, pearson(predicted, test[1]), spearman(predicted, test[1]), mse)


def _predict(layer: nn.Linear, features: Tensor, device: torch.device) -> Floats:
    with torch.no_grad():
        shares = layer(features.to(device)).softmax(dim=1).double().cpu().numpy()
    return np.asarray(shares @ np.arange(1, CLASSES + 1))
