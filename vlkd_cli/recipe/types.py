"""The types that recipe keys use; torch-free, so that any component may name them in its
signature."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class ReadsData(NamedTuple):
    """Marks a key that names a source of data; see `DataSource`."""


DataSource = Annotated[str | dict[str, Any] | None, ReadsData()]
"""The data of a suite: the name of a data set below the data root; `{dataset: NAME, split: ...}`;
or a reader with its keys, `{reader: NAME, ...}`, or several of them, each with what results call it
under `name`. None: the suite's default."""

LibraryKeys = dict[str, Any]
"""Keys that are passed on to a library, which knows their values."""

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropout: at 1 nothing would be left
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
TextLength = Annotated[int, Field(ge=2)]  # in tokens: one alone leaves no room for a text
HueShift = Annotated[float, Field(ge=0, le=0.5)]  # half of the color circle is the farthest


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"[{bounds[0]:g}, {bounds[1]:g}] runs backwards: write the lower first")
    return bounds


def _apart(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] == bounds[1]:
        raise ValueError(f"[{bounds[0]:g}, {bounds[1]:g}] is empty: write two different numbers")
    return bounds


# Lowest and highest value. An interval has something in between.
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_in_order)]
NonNegativeRange = Annotated[tuple[NonNegative, NonNegative], AfterValidator(_in_order)]
ProbabilityRange = Annotated[tuple[Probability, Probability], AfterValidator(_in_order)]
Area = Annotated[float, Field(gt=0, le=1)]
AreaRange = Annotated[tuple[Area, Area], AfterValidator(_in_order)]
Interval = Annotated[tuple[float, float], AfterValidator(_in_order), AfterValidator(_apart)]


LayerChoice = (
    Annotated[str, Field(pattern=r"^(even|first|last|every [1-9]\d*)$")] | list[NonNegativeInt]
)
"""Which of a teacher's layers a student takes: even, first, last, `every N`, or their numbers."""

TableType = Literal["float32", "bfloat16"]
"""How tables of features hold their values."""

ModalityName = Literal["image", "text", "mesh"]
"""What a tower encodes."""
MODALITY_NAMES: tuple[ModalityName, ...] = get_args(ModalityName)


class Schedule(BaseModel):
    """A number that changes with time: `{linear: [0.04, 0.07], epochs: 30}`, `{cosine: [0.99,
    1.0]}` or `{jump: [0, 0.5], steps: 1000}`.

    It goes from the first value to the last over `epochs` or `steps` (over the whole run where
    neither is given), then stays there. With `epochs`, the value changes at the start of an epoch
    and the last of these epochs already has the final value, as `numpy.linspace(first, last,
    epochs)` indexed by the epoch would give. A jump has the first value for so many epochs or
    steps, then the last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    linear: tuple[float, float] | None = None
    cosine: tuple[float, float] | None = None
    jump: tuple[float, float] | None = None
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> Schedule:
        if [self.linear, self.cosine, self.jump].count(None) != 2:
            raise ValueError("a schedule has exactly one of 'linear', 'cosine' and 'jump'")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("a schedule lasts for 'epochs' or for 'steps', not both")
        if self.jump is not None and self.epochs is None and self.steps is None:
            raise ValueError("a jump comes after 'epochs' or 'steps'; set how many")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last value."""
        return self.linear or self.cosine or self.jump or (0.0, 0.0)

    def at(self, step: int, steps_per_epoch: int = 1, total_steps: int = 1) -> float:
        """The value at an optimizer step (0-based)."""
        first, last = self.ends
        if self.jump is not None:
            passed = step if self.epochs is None else step // max(steps_per_epoch, 1)
            return first if passed < (self.epochs or self.steps or 0) else last
        if self.epochs is not None:
            done = (step // max(steps_per_epoch, 1)) / max(self.epochs - 1, 1)
        else:
            done = step / max((self.steps or total_steps) - 1, 1)
        done = min(max(done, 0.0), 1.0)
        if self.cosine is not None:
            done = (1 - math.cos(math.pi * done)) / 2
        return first + (last - first) * done


def _stays_above_zero(schedule: Schedule) -> Schedule:
    if min(schedule.ends) <= 0:
        raise ValueError("both values of this schedule must be above 0")
    return schedule


def _never_negative(schedule: Schedule) -> Schedule:
    if min(schedule.ends) < 0:
        raise ValueError("no value of this schedule may be below 0")
    return schedule


Schedulable = float | Schedule
PositiveSchedulable = Positive | Annotated[Schedule, AfterValidator(_stays_above_zero)]
NonNegativeSchedulable = NonNegative | Annotated[Schedule, AfterValidator(_never_negative)]

Precision = Literal["fp32", "bf16", "fp16"]


def value_at(
    number: Schedulable, step: int, steps_per_epoch: int = 1, total_steps: int = 1
) -> float:
    """The value of a plain number or of a schedule at an optimizer step."""
    return (
        number.at(step, steps_per_epoch, total_steps)
        if isinstance(number, Schedule)
        else float(number)
    )


class Progress(NamedTuple):
    """Where training is: `step` counts optimizer steps from 0."""

    step: int = 0
    steps_per_epoch: int = 1
    total_steps: int = 1

    @property
    def epoch(self) -> int:
        """The epoch of this step, from 0."""
        return self.step // max(self.steps_per_epoch, 1)

    def value(self, number: Schedulable) -> float:
        """The value of a plain number or of a schedule at this step."""
        return value_at(number, self.step, self.steps_per_epoch, self.total_steps)
