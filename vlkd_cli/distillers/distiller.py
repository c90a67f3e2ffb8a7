"""What every training objective is: tensors in, scalar out, state changed only in `commit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.catalog import CATALOG
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.contract import wanted_by
from vlkd_cli.recipe.types import Progress

Given = Tensor | Sequence[Tensor]
"""A side of an objective: one output, or several."""
Widths = int | tuple[int, ...]
"""Width of a side of one output, or of each of its outputs."""


class DataFacts(NamedTuple):
    """What is known of the training data before the first step."""

    num_samples: int
    """Of an epoch, over all ranks."""
    num_rows: int | None = None
    """Of the whole data set; None for streams."""
    highest_label: int | None = None
    """-1 if no sample has a label; None if the number is unknown without reading them."""
    largest_target: float | None = None
    """None if no sample has a target, or it is unknown without reading them."""


class Distiller(nn.Module):
    """Base of the training objectives.

    A subclass takes its recipe keys as keyword-only constructor arguments and implements `forward`,
    whose signature is its contract (`recipe/contract.py` reads it without torch):

        def forward(
            self,
            student: Float[Tensor, "B D"],
            teacher: Float[Tensor, "B D"],
            *,
            labels: Int[Tensor, "B"],
        ) -> Float[Tensor, ""]:

    The annotations of the sides define what a recipe may connect: `Float[Tensor, "B D"]` is an
    output of rows, `"B T D"` one of positions, `"... D"` either, `"M D"` selected positions, any
    number for each sample; `tuple[X, Y]` takes exactly two addresses, `Sequence[X]` one or more
    (both arrive as a tuple), and `|` separates alternatives, of which the number of addresses
    chooses one. Outputs with the same last letter have equal widths; `_` is any width. Without a
    `teacher` there is none. Where each side is a single output, n students with n teachers, or
    with one, are n calls whose mean is the term.

    Keyword-only names are handed over: `labels` `[B]` int64, -1 where a row has none; `targets`
    `[B, N]`; `caption_keys` `[B]` int64, equal for equal captions, -1 for an empty one; `columns`,
    by name, `[B]` entries of the columns in `self.columns`; `negatives`, a tuple of `Negatives`
    (`distillers/negatives.py`), which a recipe may name; `indices` `[B]`, the position of each
    row in the data set; `samples` `[M]`, the row of the batch that a selected position belongs to;
    `progress`, where training is.

    `forward` gets the rows of this rank in float32 or float64 with autocast off, and returns their
    mean loss, such that the mean over ranks equals the loss of one process on all rows, and the
    gradient on a rank is W times its rows' gradient there (DDP averages; see
    `distributed.collectives`): to 1e-10 in float64 and a relative 1e-5 in float32. Every rank holds
    the same number of rows; only of selected positions the numbers differ.

    Forward is pure: what a queue or a center will take in is staged while `self.training` (`stage`)
    and moved into buffers by `commit` (`take_staged`), which is called once after each optimizer
    step. A step that is skipped ends in `discard` instead.

    A subclass that works in episodes also has `start_episode(student, teacher, *, indices,
    progress)`, called before each epoch, without gradient and in eval mode, with the features of
    this rank's rows of the coming epoch. It names the sides that it reads; a teacher that only it
    names is never encoded in a step. It returns the parameters that it has initialized again,
    equal on all ranks, whose optimizer state is then dropped. Before epochs for which its
    `is_episode_due` is false, samples are not encoded for it.
    """

    direction: ClassVar[Literal["symmetric", "one_way"]]
    """"one_way" objectives detach their teacher."""
    crosses_ranks: ClassVar[str] = "nothing"
    """What is exchanged between ranks, in a few words, for the table of objectives."""
    takes_16_bits: ClassVar[bool] = False
    """Whether `forward` gets 16-bit sides as they are, because it has a faster way with them."""
    minimum_batch: ClassVar[int] = 1
    """Fewest rows over all ranks."""
    wants_by_key: ClassVar[Mapping[str, Mapping[object, str]]] = {}
    """Of `labels`, `targets` and `captions`, what it cannot do without for a value of a key."""
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {}
    """Keys that have no effect where another key, named first, has a value."""
    excludes_by_key: ClassVar[Mapping[str, Mapping[object, Mapping[str, object]]]] = {}
    """Values of keys that cannot be where another key, named first, has a value."""
    classifies_pictures: ClassVar[bool] = False
    """Whether the pictures of the student are classes, so that it has one value for each."""
    skips_own_picture: ClassVar[bool] = False
    """Whether of two lists the teacher's pictures are the first of the student's, and each is
    compared with the others only."""
    column_keys: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Its keys that name a column of the data, and their words that name none."""
    paper: ClassVar[str] = ""
    """Short citation with the arXiv number."""
    formula: ClassVar[str] = ""
    """What `forward` computes, as TeX: N rows of all ranks; x, s and t rows of the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.wants = dict(wanted_by(type(self).forward))
        self.columns: dict[str, str] = {}
        """Columns of the data that it reads: "key", integers that are equal for equal entries and
        -1 for empty ones; or "grade", numbers in 0 to 1."""
        self._staged: list[tuple[Tensor, ...]] = []

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        """Create what depends on the widths (queues, centers). Called once, before the first
        forward and before a checkpoint is loaded.

        A subclass may name a keyword-only `num_rows`, the number of rows of the data set; streams
        are then refused. Like `forward`, it is called with what its signature names, which no type
        of an overridden method can express.

        Raises:
            RecipeError: the widths do not fit in a way that the letters of `forward` cannot
            express.
        """

    def check_data(self, facts: DataFacts) -> None:
        """Refuse data that cannot be learned from; called before the first step.

        Raises:
            UserError: what is missing, and what to do.
        """
        if facts.highest_label == -1 and self.wants.get("labels", False):
            raise DataError(
                f"distiller '{name_of(self)}' needs labels, and the data has none. Read labeled"
                " data."
            )

    def is_episode_due(self, progress: Progress) -> bool:
        """Whether `start_episode` has anything to do before the epoch of `progress`; equal on every
        rank."""
        return True

    def commit(self, progress: Progress) -> None:
        """Move what the forward passes staged into the buffers, after the optimizer step of
        `progress`. On every rank."""

    def discard(self) -> None:
        """Forget what was staged; after a step that was skipped."""
        self._staged = []

    def stage(self, *tensors: Tensor) -> None:
        """Hold what `commit` will move into buffers; nothing outside of training."""
        if self.training:
            self._staged.append(tuple(tensor.detach() for tensor in tensors))

    def take_staged(self) -> list[tuple[Tensor, ...]]:
        """What the forward passes since the last commit staged, one entry for each, in their
        order."""
        staged, self._staged = self._staged, []
        return staged

    def __call__(self, student: Given, teacher: Given | None = None, **offered: object) -> Tensor:
        """`forward` with autocast off, on sides in float32 or float64 unless it takes 16 bits.

        Args:
            offered: what is available in addition to the sides; `forward` gets what it names.
        """
        sides = (student,) if teacher is None else (student, teacher)
        device = (student if isinstance(student, Tensor) else student[0]).device
        # Logits of scale 100, covariances and moving averages lose their meaning in 16 bits, and a
        # step's time goes elsewhere.
        with torch.autocast(device.type, enabled=False):
            term: Tensor = super().__call__(
                *(sides if self.takes_16_bits else map(_full, sides)),
                **{name: value for name, value in offered.items() if name in self.wants},
            )
        return term


def require_equal_width(distiller: Distiller, student: int, teacher: int) -> None:
    """Refuse sides of different widths in `setup`, where the letters of `forward` cannot express
    it.

    Raises:
        RecipeError: they differ.
    """
    if student != teacher:
        raise RecipeError(
            f"the teacher embeds {teacher} values, the student {student}, and distiller"
            f" '{name_of(distiller)}' compares them directly. Add `head: {{name: linear, width:"
            f" {teacher}}}` to the student."
        )


def counts_rows(distiller: Distiller) -> bool:
    """Whether its `setup` needs the number of rows of the data set."""
    return "num_rows" in wanted_by(type(distiller).setup)


def name_of(distiller: Distiller) -> str:
    """Its name in the catalogue, or its class."""
    kind = type(distiller)
    for name, entry in CATALOG["distiller"].items():
        if entry.target.endswith(f":{kind.__name__}"):
            return name
    return kind.__name__


def widths_of(side: Widths) -> tuple[int, ...]:
    """The widths of a side's outputs, also where it is a single one."""
    return (side,) if isinstance(side, int) else tuple(side)


def _full(side: Given) -> Given:
    """16-bit tensors as float32; float32 and float64 as they are."""
    return _widened(side) if isinstance(side, Tensor) else tuple(map(_widened, side))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
