"""What every training objective is: tensors in, scalar out, state changed only in `commit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vlkd_cli.catalog import CATALOG
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.types import Schedulable, value_at

SMALL_ROWS = 128
SMALL_ENTRIES = 2**18
"""Up to so many rows over all ranks, and entries of features and state together, everything is
computed in double precision."""


class Context(NamedTuple):
    """What an objective may know beside its two inputs. `step` counts optimizer steps from 0."""

    step: int = 0
    steps_per_epoch: int = 1
    total_steps: int = 1
    labels: Tensor | None = None  # [B] int64, -1 where a row has no label
    indices: Tensor | None = None  # [B] int64, position of each row in the data set

    @property
    def epoch(self) -> int:
        return self.step // max(self.steps_per_epoch, 1)

    def value(self, number: Schedulable) -> float:
        """A number or schedule of the recipe, now."""
        return value_at(number, self.step, self.steps_per_epoch, self.total_steps)


class Distiller(nn.Module):
    """Base of the training objectives.

    A subclass takes its recipe keys as keyword-only constructor arguments and implements
    `forward(student, teacher, context=None)`. Both sides arrive in float32 or float64, with
    autocast off, as do parameters and buffers: small batches are computed in double precision,
    where it costs nothing, and the result is rounded. It receives the rows of this rank and returns
    their mean loss, such that the mean over ranks equals the loss of one process on all rows, and
    the gradient on a rank is W times its rows' gradient there (DDP averages; see
    `distributed.collectives`). Every rank holds the same number of rows.

    Forward is pure: what a queue or a centre will take in is staged while `self.training` (`stage`)
    and moved into buffers by `commit` (`take_staged`), which the trainer calls once after each
    optimizer step. A step that is skipped ends in `discard` instead.
    """

    direction: ClassVar[Literal["symmetric", "one_way"]]
    """"one_way" objectives detach their teacher."""
    takes: ClassVar[Literal["one", "pair", "views"]] = "one"
    """What each side of the arrow is: one tensor, an (image, text) pair of tensors, or a list of
    views of one tower."""
    takes_lists: ClassVar[bool] = False
    """Whether a recipe may give a side more tensors than `takes` says; the class's documentation
    tells what they are."""
    most_outputs: ClassVar[tuple[int, int] | None] = None
    """Most tensors that such lists hold, of the student and of the teacher; None for any number."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Subset of: equal_width, labels, queue, prototypes, episode."""
    minimum_batch: ClassVar[int] = 1
    """Fewest rows over all ranks."""
    crosses_ranks: ClassVar[str] = "nothing"
    """What is exchanged between ranks, in a few words, for the table of objectives."""
    paper: ClassVar[str] = ""
    """Short citation with the arXiv number."""
    needs_teacher: ClassVar[bool] = True
    """Whether there is anything to compare with; otherwise the teacher is None."""

    _ready = False

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        """Create what depends on the widths (queues, centres). Called once, before the first
        forward and before a checkpoint is loaded.

        A width is a number, or a list where the side of the arrow is a list. Calling an objective
        that was never set up does it from the widths of the tensors it is given.
        """

    def check_data(self, num_samples: int, highest_label: int | None) -> None:
        """Refuse data that cannot be learned from; called before the first step.

        Args:
            num_samples: of an epoch, over all ranks.
            highest_label: -1 where no sample has a label; None where only reading them would tell.

        Raises:
            UserError: what is missing, and what to do.
        """
        if "labels" in self.needs and highest_label == -1:
            raise DataError(
                f"distiller '{_name(self)}' needs labels, and the data has none. Read labelled"
                " data."
            )

    def commit(self, step: int) -> None:
        """Move what the forward passes staged into the buffers; `step` is the optimizer step that
        was just taken. On every rank."""

    def discard(self) -> None:
        """Forget what was staged; after a step that was skipped."""
        self._staged = []

    def stage(self, *tensors: Tensor) -> None:
        """Keep what `commit` will move into buffers; nothing outside of training."""
        if self.training:
            self._staged.append(tuple(tensor.detach() for tensor in tensors))

    def take_staged(self) -> list[tuple[Tensor, ...]]:
        """What the forward passes since the last commit staged, one entry for each, in their
        order."""
        staged, self._staged = self._staged, []
        return staged

    def start_episode(self, student: Any, teacher: Any, indices: Tensor, context: Context) -> None:
        """Take in the features of this rank's share of the coming epoch; only for objectives that
        need "episode"."""

    def prepare(
        self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]
    ) -> None:
        """Run `setup` once, however often it is asked for.

        Raises:
            RecipeError: the sides have different widths and the objective compares them directly.
        """
        if not self._ready:
            if "equal_width" in self.needs:
                require_equal_width(self, student_width, teacher_width)
            self.setup(student_width, teacher_width)
            self._ready = True

    def __call__(self, student: Any, teacher: Any = None, context: Context | None = None) -> Tensor:
        tensor = student if isinstance(student, Tensor) else student[0]
        if not self._ready:
            self.prepare(_width(student), _width(teacher))
            self.to(tensor.device)
        # Logits of scale 100, covariances and moving averages lose their meaning in 16 bits, and a
        # step's time goes elsewhere.
        with torch.autocast(tensor.device.type, enabled=False):
            if self._is_small(tensor, student, teacher):
                # Products over shards of another shape round otherwise, by more than 1e-6 of a
                # gradient that nearly cancels.
                state = {
                    name: _double(value)
                    for name, value in [*self.named_parameters(), *self.named_buffers()]
                }
                loss = functional_call(self, state, (_double(student), _double(teacher), context))
                # Buffers are float32, and what moves them is too.
                self._staged = [
                    tuple(one.float() if one.is_floating_point() else one for one in staged)
                    for staged in self._staged
                ]
                return loss.float()
            return super().__call__(_full(student), _full(teacher), context)

    def _is_small(self, tensor: Tensor, *sides: Any) -> bool:
        """Whether this call is to be made in double precision; never of one that is."""
        rows = len(tensor) * world_size()
        if tensor.dtype == torch.float64 or rows > SMALL_ROWS:
            return False
        width = sum(one.shape[-1] for side in sides for one in _tensors(side))
        state = sum(value.numel() for value in [*self.parameters(), *self.buffers()])
        return rows * width + state <= SMALL_ENTRIES


def require_equal_width(
    distiller: Distiller, student_width: int | Sequence[int], teacher_width: int | Sequence[int]
) -> None:
    """Refuse sides of different widths, naming the head to add.

    Raises:
        RecipeError: they differ.
    """
    ours = [student_width] if isinstance(student_width, int) else list(student_width)
    theirs = [teacher_width] if isinstance(teacher_width, int) else list(teacher_width)
    for our_width in ours:
        for their_width in theirs:
            if our_width != their_width:
                head = (
                    "prototypes, prototypes"
                    if getattr(distiller, "num_prototypes", 0) is None
                    else "linear, width"
                )
                raise RecipeError(
                    f"teacher embeds {their_width} values, student {our_width}, and distiller"
                    f" '{_name(distiller)}' compares them directly. Add `head: {{name: {head}:"
                    f" {their_width}}}` to the student."
                )


def require_pairs(
    distiller: Distiller, student_width: int | Sequence[int], teacher_width: int | Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """The widths of (image, text) of both sides.

    Raises:
        RecipeError: a side is no pair.
    """
    for side, width in (("student", student_width), ("teacher", teacher_width)):
        if isinstance(width, int) or len(width) != 2:
            count = 1 if isinstance(width, int) else len(width)
            raise RecipeError(
                f"distiller '{_name(distiller)}' compares two pairs of towers, but its {side} is"
                f" {count} output{'s' * (count > 1)}. Write student: [image, text] and teacher:"
                " [teacher_image, teacher_text]."
            )
    assert not isinstance(student_width, int) and not isinstance(teacher_width, int)
    return student_width, teacher_width


def _name(distiller: Distiller) -> str:
    """Its name in the catalogue, or its class."""
    kind = type(distiller)
    for name, entry in CATALOG["distiller"].items():
        if entry.target.endswith(f":{kind.__name__}"):
            return name
    return kind.__name__


def _full(side: Any) -> Any:
    """16-bit tensors as float32; float32 and float64 as they are."""
    if isinstance(side, Tensor):
        return side.float() if side.dtype in (torch.float16, torch.bfloat16) else side
    return side if side is None else tuple(_full(tensor) for tensor in side)


def _double(side: Any) -> Any:
    """Floating-point tensors as float64; places and labels as they are."""
    if isinstance(side, Tensor):
        return side.double() if side.is_floating_point() else side
    return side if side is None else tuple(_double(tensor) for tensor in side)


def _tensors(side: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor]:
    if side is None:
        return ()
    return (side,) if isinstance(side, Tensor) else side


def _width(side: Tensor | Sequence[Tensor] | None) -> int | list[int]:
    if side is None:
        return 0
    return side.shape[-1] if isinstance(side, Tensor) else [tensor.shape[-1] for tensor in side]
