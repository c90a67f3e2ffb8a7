"""Multinomial logistic regression on fixed features, as CLIP, ITRA and CLIP_benchmark train it.

The gradient of a linear layer under cross-entropy is known in closed form, so the loops need no
autograd.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkd_cli.errors import DataError


class Linear(NamedTuple):
    """A linear classifier: `weight` `[C, D]` and `bias` `[C]`."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Class scores `[N, C]`."""
        return torch.addmm(self.bias, features, self.weight.T)


def sgd_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    epochs: int = 100,
    batch_size: int = 1024,
    momentum: float = 0.9,
    seed: int = 0,
    each_epoch: Callable[[Linear], None] | None = None,
) -> Linear:
    """A linear layer by SGD with momentum and a cosine to 0 over epochs, rows in their order;
    weight from N(0, 0.01), bias 0.

    Args:
        each_epoch: called with the classifier after every epoch; its tensors change later.

    Source: ITRA itra/evaluation/linear_eval.py and ProtoCLIP's, "pytorch" mode.
    """
    weight = (
        torch.randn(
            num_classes, features.shape[1], generator=torch.Generator().manual_seed(seed)
        ).to(features)
        * 0.01
    )
    weights = torch.cat([weight, weight.new_zeros(num_classes, 1)], 1)
    inputs = torch.cat([features, features.new_ones(len(features), 1)], 1)
    velocity = torch.zeros_like(weights)
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for start in range(0, len(inputs), batch_size):
            block = inputs[start : start + batch_size]
            gradient = (
                _gradient(block, labels[start : start + batch_size], weights)
                + weight_decay * weights
            )
            velocity.mul_(momentum).add_(gradient)
            weights -= rate * velocity
        if each_epoch is not None:
            each_epoch(Linear(weights[:, :-1], weights[:, -1]))
    return Linear(weights[:, :-1], weights[:, -1])


def adamw_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    epochs: int = 20,
    batch_size: int = 512,
    seed: int = 0,
) -> Linear:
    """A linear layer by AdamW with a cosine to 0, shuffled; the initialization of torch's linear
    layer.

    Source: CLIP_benchmark's linear_probe.py.
    """
    bound = 1 / math.sqrt(features.shape[1])
    start = torch.empty(num_classes, features.shape[1] + 1).uniform_(
        -bound, bound, generator=torch.Generator().manual_seed(seed)
    )
    weights = start.to(features)
    inputs = torch.cat([features, features.new_ones(len(features), 1)], 1)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(seed)
    steps, step = epochs * -(-len(inputs) // batch_size), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch_size):
            rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            gradient = _gradient(inputs[rows], labels[rows], weights)
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            weights *= 1 - rate * weight_decay
            denominator = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
            weights.addcdiv_(mean, denominator, value=-rate / (1 - 0.9**step))
    return Linear(weights[:, :-1], weights[:, -1])


def _gradient(block: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Of the mean cross-entropy with respect to the stacked weight and bias."""
    error = torch.softmax(block @ weights.T, 1)
    error[torch.arange(len(block)), labels] -= 1
    return error.T @ block / len(block)


def logistic_regression(
    features: Tensor, labels: Tensor, *, C: float, iterations: int = 1000
) -> Any:
    """scikit-learn's logistic regression (L-BFGS), fitted.

    Raises:
        DataError: all labels are equal.

    Source: openai/CLIP's linear-probe example.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2:
        raise DataError(
            "the training images are all of one class; logistic regression needs two. Give others"
            " with `train_data:`."
        )
    with warnings.catch_warnings():
        # One image per class is what a one-shot probe is about.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater")
        return LogisticRegression(random_state=0, C=C, max_iter=iterations).fit(
            features.numpy(), labels.numpy()
        )
