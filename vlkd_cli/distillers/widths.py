"""Any objective between two outputs at several widths of them, from one encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlkd_cli import console
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths, name_of
from vlkd_cli.distributed.collectives import gathering_once
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import Progress


class AtWidths(Distiller):
    """The sum over widths w of an objective between the first w values of both sides.

    L = sum_k c_k L_obj(x[:, :w_k], y[:, :w_k]). Learned scales and biases are shared; what an
    objective makes for its widths (queues, prototypes, projections) there is of each width.

    Args:
        inner: the objective, once for each width.
        widths: ascending.
        weights: c; by default 1.

    Source: Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022, arXiv:2205.13147,
    equation 1.
    """

    def __init__(
        self,
        inner: Sequence[Distiller],
        widths: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        first = inner[0]
        self.widths, self.weights = tuple(widths), tuple(weights or (1.0,) * len(widths))
        self.direction = first.direction  # type: ignore[misc]
        self.crosses_ranks = first.crosses_ranks  # type: ignore[misc]
        self.minimum_batch = first.minimum_batch  # type: ignore[misc]
        self.takes_16_bits = first.takes_16_bits  # type: ignore[misc]
        self.wants, self.columns = first.wants, first.columns
        for other in inner[1:]:
            for name, parameter in first.named_parameters(recurse=False):
                if parameter.ndim == 0:
                    other.register_parameter(name, parameter)
        self.at = nn.ModuleDict(
            {str(width): each for width, each in zip(widths, inner, strict=True)}
        )

    @property
    def inner(self) -> list[Distiller]:
        """The objective of each width."""
        return [each for each in self.at.values() if isinstance(each, Distiller)]

    @property
    def starts_from_towers(self) -> bool:
        """Whether its scale starts where the towers' own dual encoder ended."""
        return bool(getattr(self.inner[0], "starts_from_towers", False))

    def start_from(self, scale: float, bias: float | None) -> None:
        """See `ScaledDistiller.start_from`."""
        for each in self.inner:
            each.start_from(scale, bias)  # type: ignore[operator]

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        """Set every width up.

        Raises:
            RecipeError: a side has fewer values than a width.
        """
        assert isinstance(student, int) and isinstance(teacher, int)
        least = min(student, teacher)
        if self.widths[-1] > least:
            raise RecipeError(
                f"widths: {self.widths[-1]} is more than the {least} values that it compares. Leave"
                " it out."
            )
        if self.widths[-1] < max(student, teacher):
            console.warn_once(
                f"distiller '{name_of(self.inner[0])}': the full width, {max(student, teacher)}, is"
                f" not among widths {list(self.widths)}, so no loss reads the last values. Add it"
                " to train them."
            )
        for width, each in zip(self.widths, self.inner, strict=True):
            each.setup(width, width)

    def check_data(self, facts: DataFacts) -> None:
        self.inner[0].check_data(facts)

    def commit(self, progress: Progress) -> None:
        for each in self.inner:
            each.commit(progress)

    def discard(self) -> None:
        for each in self.inner:
            each.discard()

    def forward(self, student: Tensor, teacher: Tensor, **offered: Any) -> Tensor:
        total = student.new_zeros(())
        negatives = offered.pop("negatives", ())
        with gathering_once() as prefix:
            for width, weight, each in zip(self.widths, self.weights, self.inner, strict=True):
                cut = [one._replace(values=one.values[..., :width]) for one in negatives]
                given = {**offered, "negatives": tuple(cut)}
                term = each(prefix(student, width), prefix(teacher, width), **given)
                total = total + weight * term
        return total
