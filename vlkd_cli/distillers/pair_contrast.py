"""What the two contrastive losses over pairs share: a factor on cosines, and which pairs match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import Matching
from vlkd_cli.distillers.distiller import DataFacts, name_of
from vlkd_cli.distillers.logit_scale import CLIP_SCALE, ScaledDistiller
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.types import Positive, Probability

Positives = Literal["diagonal", "caption", "label"]


class PairContrast(ScaledDistiller):
    """Base of the contrastive losses between matching pairs.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm); `from towers`: the one that
            the dual encoder was trained to whose halves are compared.
        learnable: whether the factor is trained; it then stays within [1, max_logit_scale] after
            each step.
        max_logit_scale: highest factor; null leaves it unbounded.
        positives: which pairs match: those of a sample alone, or also those of samples with equal
            captions (white space aside) or equal labels, on any rank. A sample without a caption or
            label matches itself alone. For metadata, read their column as the label.
        positive_weight: of pairs that match off the diagonal; 0 leaves them out of the
            denominators, so that duplicates are not negatives.
        graded: take the weight of a pair from the target of its second sample, in 0 to 1, instead.
    """

    wants_by_key: ClassVar[Mapping[str, Mapping[Any, str]]] = {
        "positives": {"caption": "captions", "label": "labels"},
        "graded": {True: "targets"},
    }

    def __init__(
        self,
        *,
        logit_scale: Positive | Literal["from towers"] = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        positives: Positives = "diagonal",
        positive_weight: Probability = 1.0,
        graded: bool = False,
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        if positives == "diagonal" and (graded or positive_weight != 1):
            key = "graded" if graded else "positive_weight"
            raise RecipeError(
                f"distiller '{name_of(self)}': {key} has no effect without positives. Set"
                " positives: caption or label."
            )
        if graded and positive_weight != 1:
            raise RecipeError(
                "positive_weight has no effect with graded: true. Leave one of them out."
            )
        self.positives, self.positive_weight, self.graded = positives, positive_weight, graded
        wanted = {"caption": "caption_keys", "label": "labels"}.get(positives)
        # What it does not look at is neither read nor checked; a subclass may want more.
        used = {wanted, "targets" if graded else None}
        unused = {"caption_keys", "labels", "targets"} - used
        self.wants = {
            name: name in used or needed
            for name, needed in self.wants.items()
            if name not in unused
        }

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        if self.graded and facts.largest_target is not None and facts.largest_target > 1:
            raise DataError(
                f"graded: targets go up to {facts.largest_target:g}, and a grade is in 0 to 1."
                " Scale the column."
            )

    def matching(
        self, caption_keys: Tensor | None, labels: Tensor | None, targets: Tensor | None
    ) -> Matching | None:
        """The pairs that match; None for a sample's own alone."""
        keys = caption_keys if self.positives == "caption" else labels
        if self.positives == "diagonal" or keys is None:
            return None
        grades = None
        if self.graded and targets is not None:
            if targets.shape[1] != 1:
                raise DataError(
                    f"graded: samples have {targets.shape[1]} targets, and a grade is one number."
                    " Name one column in data.target."
                )
            grades = targets[:, 0]
        return Matching(keys, self.positive_weight, grades)
