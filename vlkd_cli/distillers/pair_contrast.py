"""What the two contrastive losses over pairs share: a factor on cosines, and which pairs match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import Extra, Matching
from vlkd_cli.distillers.distiller import name_of
from vlkd_cli.distillers.logit_scale import CLIP_SCALE, ScaledDistiller
from vlkd_cli.distillers.negatives import Negatives, against
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import Positive, Probability

OWN, CAPTION, LABEL = "diagonal", "caption", "label"
"""Words of `positives`; any other is a column of the data."""


class PairContrast(ScaledDistiller):
    """Base of the contrastive losses between matching pairs.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm); `from towers`: the one that
            the dual encoder was trained to whose halves are compared.
        learnable: whether the factor is trained; it then stays within [1, max_logit_scale] after
            each step.
        max_logit_scale: highest factor; null leaves it unbounded.
        positives: which pairs match: `diagonal`, those of a sample alone; or also those of samples
            with an equal `caption` (white space aside), an equal `label`, or an equal entry of the
            column of the data that is named, on any rank. A sample whose entry is empty matches
            itself alone.
        positive_weight: of pairs that match off the diagonal; 0 leaves them out of the
            denominators, so that duplicates are not negatives.
        grade: column of the data with the weight of the pairs whose second sample a row is, in 0
            to 1, instead.
        negatives_of: whose `negatives` a sample is compared with: those of the `batch`, of all
            ranks, or its `own` alone.
    """

    wants_by_key: ClassVar[Mapping[str, Mapping[object, str]]] = {
        "positives": {"caption": "captions", "label": "labels"},
    }
    column_keys: ClassVar[Mapping[str, Sequence[str]]] = {
        "positives": ("diagonal", "caption", "label"),
        "grade": (),
    }

    def __init__(
        self,
        *,
        logit_scale: Positive | Literal["from towers"] = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        positives: str = "diagonal",
        positive_weight: Probability = 1.0,
        grade: str | None = None,
        negatives_of: Literal["batch", "own"] = "batch",
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        if positives == OWN and (grade is not None or positive_weight != 1):
            key = "positive_weight" if grade is None else "grade"
            raise RecipeError(
                f"distiller '{name_of(self)}': {key} has no effect without positives. Set"
                " positives: caption, label or a column."
            )
        if grade is not None and positive_weight != 1:
            raise RecipeError("positive_weight has no effect with a grade. Leave one of them out.")
        self.positives, self.positive_weight, self.grade = positives, positive_weight, grade
        self.negatives_of = negatives_of
        by_column = positives not in (OWN, CAPTION, LABEL)
        self.columns = {positives: "key"} if by_column else {}
        if grade is not None:
            if grade in self.columns:
                raise RecipeError(f"column '{grade}' cannot be both positives and grade.")
            self.columns[grade] = "grade"
        # What it does not look at is neither read nor checked; a subclass may want more.
        used = {
            "caption_keys": positives == CAPTION,
            "labels": positives == LABEL,
            "columns": bool(self.columns),
        }
        self.wants = {
            name: used.get(name, needed)
            for name, needed in self.wants.items()
            if used.get(name, True)
        }

    def matching(
        self,
        caption_keys: Tensor | None,
        labels: Tensor | None,
        columns: Mapping[str, Tensor] | None,
    ) -> Matching | None:
        """The pairs that match; None for a sample's own alone."""
        columns = columns or {}
        words = {CAPTION: caption_keys, LABEL: labels}
        keys = words[self.positives] if self.positives in words else columns.get(self.positives)
        if keys is None:
            return None
        grades = None if self.grade is None else columns[self.grade]
        return Matching(keys, self.positive_weight, grades)

    def against(
        self,
        student: Tensor,
        teacher: Tensor,
        negatives: Sequence[Negatives],
        bias: Tensor | None = None,
    ) -> Extra:
        """What each row makes of the negatives of the other side's kind (`negatives.against`)."""
        found: dict[str, Tensor | None] = {}
        for side, rows, kind in (("student", student, "teacher"), ("teacher", teacher, "student")):
            own = [each for each in negatives if each.side == kind]
            found[side] = (
                against(rows, own, self.scale, bias, own_only=self.negatives_of == "own")
                if own
                else None
            )
        return Extra(found["student"], found["teacher"])
