"""A training loop of one's own around a recipe, and the outputs of a trained tower."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

import vlkd_cli
from vlkd_cli.recipe.types import Progress


def train(recipe: str, num_steps: int) -> list[float]:
    composition, loader = vlkd_cli.compose(recipe, device="cpu")
    optimizer = torch.optim.AdamW(composition.parameters(), lr=1e-3)
    losses = []
    for step, batch in enumerate(itertools.islice(loader.batches(0), num_steps)):
        progress = Progress(step, loader.batches_per_epoch, num_steps)
        loss, _terms = composition(batch, progress)  # changes no state
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        composition.commit(progress)  # queues, banks, centers and followers move
        losses.append(loss.item())
    loader.close()
    return losses


def outputs(run: str, images: Tensor) -> dict[str, Tensor]:
    tower = vlkd_cli.open_run(run).tower("image")
    with torch.no_grad():
        return tower.outputs(images, ["backbone", "tokens"])
