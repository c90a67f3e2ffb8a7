"""Train a whole image tower with a classifier on it: ELEVATER's fine-tuning loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.evaluation.probes.probes import BATCH_NORM_EPS, HeadSetting, epoch_orders
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.precision import autocast, grad_scaler

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

Point = Literal["head", "backbone"]


class TowerClassifier(nn.Module):
    """A learning copy of an image tower, batch norm without weights, and a linear layer.

    Args:
        tower: left as it is. Its copy learns wholly, whatever was frozen, except the head where the
            features come from before it.
        classes: C.
        point: where the features are taken.
        initial: `[C, D]` start of the linear layer, e.g. the text embeddings of the classes; the
            bias starts at 0. By default torch's own initialization, from `seed`.
        seed: of the linear layer's random start.

    Source: Elevater_Toolkit_IC @00d0af7, evaluation/full_model_finetune.py, Classifier (logit scale
        fixed at 1).
    """

    def __init__(
        self,
        tower: Tower,
        classes: int,
        *,
        point: Point = "head",
        initial: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tower = learning_copy(tower)
        self.point = point
        if point == "backbone":
            self.tower.head.requires_grad_(False)
        width = tower.width if point == "head" else tower.feature_width
        self.norm = nn.BatchNorm1d(width, eps=BATCH_NORM_EPS, affine=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(width, classes)
        if initial is not None:
            if tuple(initial.shape) != (classes, width):
                raise ValueError(
                    f"the classifier starts from {tuple(initial.shape)} weights; {classes} classes"
                    f" of {width} values are needed"
                )
            with torch.no_grad():
                self.linear.weight.copy_(initial)
                self.linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Class scores `[B, C]` of images as the loader gives them."""
        features = (
            self.tower.encode(images) if self.point == "head" else self.tower.features(images)
        )
        logits: Tensor = self.linear(self.norm(features.float()))
        return logits

    @property
    def num_trainable(self) -> int:
        """Numbers that learn."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def learning_copy(tower: Tower) -> Tower:
    """A copy of a tower of which every parameter learns; shares nothing with the original."""
    from vlkd_cli.towers.tower import Tower

    encoder = copy.deepcopy(tower.encoder).requires_grad_(True)
    pooler = copy.deepcopy(tower.pooler)
    heads = copy.deepcopy(tower.parts())
    for part in (pooler, *(head.module for head in heads.values())):
        if part is not None:
            part.requires_grad_(True)
    learner = Tower(tower.name, encoder, pooler=pooler, heads=heads, masks=tower.masks)
    learner.input = tower.input
    return learner


def train_classifier(
    subject: Subject,
    network: TowerClassifier,
    reader: Reader,
    rows: Sequence[int],
    targets: Tensor,
    setting: HeadSetting,
    *,
    epochs: int,
    batch_size: int = 64,
    multi_label: bool = False,
    momentum: float = 0.9,
    seed: int = 0,
) -> Iterator[TowerClassifier]:
    """Train by SGD with a constant learning rate and without augmentation; yields the network after
    every epoch.

    Args:
        subject: device, precision and loader workers.
        rows: positions in the reader to train on.
        targets: `[len(rows)]` int64, or `[len(rows), C]` of zeros and ones where `multi_label`.
        seed: of the row orders.
    """
    network.to(subject.device)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        learning, lr=setting.lr, momentum=momentum, weight_decay=setting.weight_decay
    )
    loss_of: nn.Module = nn.BCEWithLogitsLoss() if multi_label else nn.CrossEntropyLoss()
    orders = epoch_orders(len(rows), seed=seed)
    positions = torch.as_tensor(rows, dtype=torch.int64)
    scaler = grad_scaler(subject.precision, subject.device)
    for _ in range(epochs):
        network.train()
        order = next(orders)
        start = 0
        for images in _image_batches(
            subject, network, reader, positions[order].tolist(), batch_size
        ):
            own = targets[order[start : start + len(images)]].to(subject.device)
            start += len(images)
            if len(images) == 1:  # batch norm cannot train on one row
                continue
            optimizer.zero_grad()
            with autocast(subject.precision, subject.device):
                logits = network(images)
            loss = loss_of(logits.float(), own.float() if multi_label else own)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        yield network


def class_probabilities(
    subject: Subject, network: TowerClassifier, reader: Reader, rows: Sequence[int]
) -> Tensor:
    """Softmax outputs `[len(rows), C]` in eval mode, on the CPU."""
    network.eval()
    blocks = []
    with torch.no_grad():
        for images in _image_batches(subject, network, reader, rows, subject.batch_size):
            with autocast(subject.precision, subject.device):
                logits = network(images)
            blocks.append(logits.float().softmax(-1).cpu())
    return torch.cat(blocks)


def _image_batches(
    subject: Subject, network: TowerClassifier, reader: Reader, rows: Sequence[int], batch_size: int
) -> Iterator[Tensor]:
    from vlkd_cli.data.loading.loader import in_order
    from vlkd_cli.data.views import ImageView

    views = {"image": ImageView(network.tower.input, None)}
    for batch in in_order(reader, views, rows, batch_size=batch_size, workers=subject.workers):
        images = batch.to(subject.device).inputs["image"]
        assert isinstance(images, Tensor)
        yield images
