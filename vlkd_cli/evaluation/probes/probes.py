"""Heads trained by gradient descent on frozen features: ELEVATER's linear probe, many settings in
one pass.

The toolkit trains one head at a time through the whole network. Its backbone is frozen, its batch
norm has no weights and every training sees the rows in the same order, so all heads of a sweep
share each batch and its normalization: they are trained here as one wide linear layer whose row
blocks have their own learning rate and weight decay. The numbers are those of the heads trained one
by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


class HeadSetting(NamedTuple):
    """What distinguishes two heads of one pass."""

    lr: float
    weight_decay: float


def epoch_orders(num_rows: int, *, seed: int = 0) -> Iterator[Tensor]:
    """Row orders of epoch 1, 2, ..., as a DataLoader with `shuffle` and a generator of this seed
    gives them.

    The loader takes one number for its workers' seeds from the same generator before each
    permutation, and its sampler generates a second permutation, of which it uses no row, when the
    first is exhausted.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        yield torch.randperm(num_rows, generator=generator)
        torch.randperm(num_rows, generator=generator)


def epoch_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """An epoch's rows in batches; a last batch of a single row is left out, since batch norm cannot
    train on it."""
    return [batch for batch in order.split(batch_size) if len(batch) > 1]


class HeadBank:
    """H heads behind one batch norm without weights: features -> BatchNorm -> Linear, each with its
    own learning rate and weight decay.

    Args:
        width: D, of the features.
        classes: C.
        settings: H of them.
        initial: `[C, D]` start of every head, e.g. the text embeddings of the classes; the bias
            starts at 0. By default torch's own initialization of a linear layer, generated once
            from `seed` and the same for all heads.
        multi_label: binary cross-entropy over the classes instead of cross-entropy.
        momentum: of SGD (without Nesterov, without dampening).
        device: where it trains.

    Source: ELEVATER toolkit (Elevater_Toolkit_IC @00d0af7), evaluation/full_model_finetune.py and
    optim/build.py: SGD, constant learning rate, weight decay on weights and biases, logit scale
    fixed at 1.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        settings: Sequence[HeadSetting],
        *,
        initial: Tensor | None = None,
        multi_label: bool = False,
        momentum: float = 0.9,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.width, self.classes, self.heads = width, classes, len(settings)
        self.multi_label, self.momentum = multi_label, momentum
        self.device = device or torch.device("cpu")
        weight, bias = _start(width, classes, initial, seed)
        self.weight = weight.repeat(self.heads, 1).to(self.device)
        self.bias = bias.repeat(self.heads).to(self.device)
        self.weight_velocity = torch.zeros_like(self.weight)
        self.bias_velocity = torch.zeros_like(self.bias)
        self.running_mean = torch.zeros(width, device=self.device)
        self.running_variance = torch.ones(width, device=self.device)
        lr = torch.tensor([setting.lr for setting in settings], dtype=torch.float64)
        decay = torch.tensor([setting.weight_decay for setting in settings], dtype=torch.float64)
        self._lr = lr.float().repeat_interleave(classes).to(self.device)
        self._decay = decay.float().repeat_interleave(classes).to(self.device)

    def train_epoch(self, features: Tensor, targets: Tensor, batches: Sequence[Tensor]) -> None:
        """One pass over the rows in the given batches.

        Args:
            features: `[N, D]` float32.
            targets: `[N]` int64, or `[N, C]` of zeros and ones for multi-label data.
            batches: row positions.
        """
        for rows in batches:
            self._step(features[rows].to(self.device), targets[rows].to(self.device))

    def _step(self, features: Tensor, targets: Tensor) -> None:
        normal = nn.functional.batch_norm(
            features,
            self.running_mean,
            self.running_variance,
            training=True,
            momentum=BATCH_NORM_MOMENTUM,
            eps=BATCH_NORM_EPS,
        )
        logits = torch.addmm(self.bias, normal, self.weight.T).view(
            len(features), self.heads, self.classes
        )
        # Both losses have the gradient (prediction - truth) / number of averaged terms; averages
        # run over each head's own terms.
        if self.multi_label:
            gradient = (logits.sigmoid() - targets.to(logits.dtype).unsqueeze(1)) / (
                len(features) * self.classes
            )
        else:
            truth = nn.functional.one_hot(targets, self.classes).to(logits.dtype).unsqueeze(1)
            gradient = (logits.softmax(-1) - truth) / len(features)
        flat = gradient.reshape(len(features), -1)
        self._update(
            self.weight,
            self.weight_velocity,
            flat.T @ normal,
            self._lr.unsqueeze(1),
            self._decay.unsqueeze(1),
        )
        self._update(self.bias, self.bias_velocity, flat.sum(0), self._lr, self._decay)

    def _update(
        self, value: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, decay: Tensor
    ) -> None:
        velocity.mul_(self.momentum).add_(gradient.addcmul_(value, decay))
        value.addcmul_(velocity, lr, value=-1)

    def probabilities(self, features: Tensor, head: int = 0) -> Tensor:
        """Softmax outputs `[N, C]` of one head on the CPU, with the batch norm's running
        statistics; rows are taken in blocks.

        ELEVATER scores multi-label data by the softmax too.
        """
        own = slice(head * self.classes, (head + 1) * self.classes)
        weight, bias = self.weight[own], self.bias[own]
        scale = torch.rsqrt(self.running_variance + BATCH_NORM_EPS)
        blocks = []
        for block in features.split(8192):
            normal = (block.to(self.device) - self.running_mean) * scale
            blocks.append(torch.addmm(bias, normal, weight.T).softmax(-1).cpu())
        return torch.cat(blocks) if blocks else torch.zeros(0, self.classes)

    @property
    def num_parameters(self) -> int:
        """Trained numbers of one head."""
        return self.classes * (self.width + 1)


def _start(width: int, classes: int, initial: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    if initial is not None:
        if tuple(initial.shape) != (classes, width):
            raise ValueError(
                f"the head starts from {tuple(initial.shape)} weights; {classes} classes of {width}"
                " values are needed"
            )
        return initial.detach().float().cpu().clone(), torch.zeros(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(width, classes)
    return layer.weight.detach().clone(), layer.bias.detach().clone()


def train_heads(
    features: Tensor,
    targets: Tensor,
    *,
    classes: int,
    settings: Sequence[HeadSetting],
    epochs: int,
    batch_size: int = 64,
    initial: Tensor | None = None,
    multi_label: bool = False,
    momentum: float = 0.9,
    seed: int = 0,
    device: torch.device | None = None,
) -> Iterator[HeadBank]:
    """Train all heads side by side and yield the bank after every epoch; the same bank each time,
    so take what you need at once.

    Args:
        features: `[N, D]`; copied to the device once.
        targets: `[N]` int64, or `[N, C]` of zeros and ones where `multi_label`.
        seed: of the row orders and of a head's random start.
    """
    bank = HeadBank(
        features.shape[1],
        classes,
        settings,
        initial=initial,
        multi_label=multi_label,
        momentum=momentum,
        seed=seed,
        device=device,
    )
    features, targets = features.to(bank.device, torch.float32), targets.to(bank.device)
    orders = epoch_orders(len(features), seed=seed)
    with torch.no_grad():
        for _ in range(epochs):
            bank.train_epoch(
                features,
                targets,
                [batch.to(bank.device) for batch in epoch_batches(next(orders), batch_size)],
            )
            yield bank
