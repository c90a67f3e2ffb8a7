"""The losses and miners of pytorch-metric-learning, exact over ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.class_weights import require_num_classes
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.distillers.labeled_rows import classes_of
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.messages import report
from vlkd_cli.recipe.metric_names import Part, check_metric, parts_of, supplied_widths
from vlkd_cli.recipe.types import LibraryKeys, Progress

NO_LENGTH = 1e-6


class Metric(Distiller):
    """Any loss of pytorch-metric-learning over labeled rows, with any of its miners.

    Every rank computes the whole loss over the rows of all ranks, so memory grows with the square
    of the global batch; `triplet`, `supcon`, `multi_similarity`, `margin_softmax` and
    `proxy_anchor` do without. Several outputs of a sample are several rows of its class; a sample
    without a label is a class of its own, and is left out by losses with class weights.

    Args:
        loss: a class of `pytorch_metric_learning.losses`, or a mapping with `name` and its keys;
            the width is supplied.
        miner: a class of `pytorch_metric_learning.miners`, or a mapping with `name` and its keys.
        distance: a class of `pytorch_metric_learning.distances`, or a mapping with `name` and its
            keys, for loss and miner; null takes each one's own.

    Source: Musgrave et al., PyTorch Metric Learning, arXiv:2008.09164, version 2.9. Differs in what
    crosses ranks: the library's DistributedLossWrapper changes gradients with the number of ranks.
    """

    direction = "symmetric"
    crosses_ranks = "rows with gradient, labels"
    minimum_batch = 2
    paper = "Musgrave et al., arXiv:2008.09164"
    formula = (
        r"L = \ell(X, y, \mu(X, y)), \quad \ell \text{ the key loss}, \ \mu \text{ the key miner}"
    )

    loss: nn.Module

    def __init__(
        self,
        *,
        loss: str | LibraryKeys,
        miner: str | LibraryKeys | None = None,
        distance: str | LibraryKeys | None = None,
    ) -> None:
        super().__init__()
        keys = {"loss": loss, "miner": miner, "distance": distance}
        if problems := list(check_metric(keys, ())):
            raise RecipeError(report({}, problems, "distiller 'metric'"))
        self.loss_keys, self.miner_keys, self.distance_keys = loss, miner, distance
        self.miner = None if miner is None else self._made("miner", miner)

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, tuple)
        name, keys = parts_of(self.loss_keys)
        widths = dict.fromkeys(supplied_widths(name), student[0])
        # Equal class weights on all ranks.
        with _seeded(0, torch.device("cpu")):
            self.loss = self._made("loss", {"name": name, **keys, **widths})

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        _, keys = parts_of(self.loss_keys)
        num_classes = keys.get("num_classes")
        if isinstance(num_classes, int):
            require_num_classes("metric", num_classes, facts.highest_label)

    def forward(
        self,
        student: Sequence[Float[Tensor, "B D"]],
        *,
        labels: Int[Tensor, " B"] | None = None,
        indices: Int[Tensor, " B"] | None = None,
        progress: Progress,
    ) -> Float[Tensor, ""]:
        learns_classes = next(self.loss.parameters(), None) is not None
        if labels is None and (len(student) == 1 or learns_classes):
            raise DataError(
                "distiller 'metric' compares rows by their labels, and the data has none. Read"
                " labeled data."
            )
        classes = gather_without_grad(classes_of(labels, indices, student[0]))
        # Outputs one after the other, so that the order is that of one process.
        rows = torch.cat([gather(output) for output in student])
        # A row of zeros has no direction, and the library divides its gradient by 1e-12.
        rows = torch.where(rows.detach().norm(dim=1, keepdim=True) > NO_LENGTH, rows, rows.detach())
        classes = classes.repeat(len(student))
        nothing = 0 * (rows.sum() + sum(weight.sum() for weight in self.loss.parameters()))
        if learns_classes:
            rows, classes = rows[classes >= 0], classes[classes >= 0]
        else:
            # Only which are equal matters, and some losses take no negative numbers.
            classes = classes.unique(return_inverse=True)[1]
        if not len(rows):
            return nothing
        # Random choices of the library are equal on all ranks.
        with _seeded(progress.step, rows.device):
            return self._value(rows, classes) + nothing

    def _value(self, rows: Tensor, classes: Tensor) -> Tensor:
        try:
            mined = None if self.miner is None else self.miner(rows, classes)
            value: Tensor = self.loss(rows, classes, mined)
        # Some values of keys only fail where they are used.
        except (ValueError, TypeError, AttributeError, LookupError, NameError) as error:
            raise self._refused("loss" if self.miner is None else "miner", error) from error
        return value

    def _made(self, part: Part, spec: str | LibraryKeys) -> Any:
        """The library's object of a name with keys."""
        from pytorch_metric_learning import distances, losses, miners

        name, keys = parts_of(spec)
        if part != "distance" and self.distance_keys is not None:
            keys["distance"] = self._made("distance", self.distance_keys)
        module = {"loss": losses, "miner": miners, "distance": distances}[part]
        try:
            return getattr(module, name)(**keys)
        # The library refuses values by any kind of exception.
        except Exception as error:
            raise self._refused(part, error) from error

    def _refused(self, part: Part, error: Exception) -> RecipeError:
        name, _ = parts_of(getattr(self, f"{part}_keys"))
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return RecipeError(
            f"distiller 'metric': {part} '{name}' does not take these keys or rows ({reason[0]})."
            " Correct its keys."
        )


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of PyTorch and NumPy from a seed; their states are restored afterwards."""
    state = np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)
