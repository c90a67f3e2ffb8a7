"""The terms of CLIP-KD: four ways for one image-text pair of towers to learn from another.

Each takes (image, text) of the student and of the teacher. Where the widths differ, the terms that
compare features carry a linear map from the student's width to the teacher's, one for each
modality, which is trained and then thrown away.

Source: Yang et al., CLIP-KD: An Empirical Study of CLIP Model Distillation, CVPR 2024,
arXiv:2307.12732, section 3; winycg/CLIP-KD, src/open_clip/loss.py:KDClipLoss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.distiller import Context, Distiller, require_pairs
from vlkd_cli.distillers.similarity import (
    add_log_scale,
    clamp_log_scale,
    cross_logits,
    own_columns,
    soft_kl,
    unit,
)
from vlkd_cli.distributed.collectives import all_reduce_sum, gather
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.recipe.types import Positive

Pair = Sequence[Tensor]


class _Projecting(Distiller):
    """A distiller that maps the student's features to the teacher's widths where they differ."""

    projections: nn.ModuleList

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        ours, theirs = require_pairs(self, student_width, teacher_width)
        generator = torch.Generator().manual_seed(0)
        self.projections = nn.ModuleList()
        for our_width, their_width in zip(ours, theirs, strict=True):
            if our_width == their_width:
                self.projections.append(nn.Identity())
                continue
            projection = nn.Linear(our_width, their_width)
            # The same start on every rank, whatever its random state.
            nn.init.uniform_(
                projection.weight, -(our_width**-0.5), our_width**-0.5, generator=generator
            )
            nn.init.zeros_(projection.bias)
            self.projections.append(projection)

    def mapped(self, student: Pair) -> list[Tensor]:
        """Student features at the teacher's widths, normalised."""
        return [
            unit(projection(side))
            for projection, side in zip(self.projections, student, strict=True)
        ]


class FeatureDistance(_Projecting):
    """Mean squared distance of the normalised features, image to image plus text to text.

    The mean runs over samples and features, which makes it small: the authors weigh it 2000.

    Source: CLIP-KD, equation 4 (FD).
    """

    direction = "one_way"
    takes = "pair"
    crosses_ranks = "nothing"
    paper = "Yang et al. 2024, arXiv:2307.12732"

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self,
        student: Sequence[Float[Tensor, "B _"]],
        teacher: Sequence[Float[Tensor, "B _"]],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        pairs = zip(self.mapped(student), teacher, strict=True)
        return torch.stack(
            [F.mse_loss(ours, unit(theirs.detach())) for ours, theirs in pairs]
        ).sum()


class InteractiveContrast(_Projecting):
    """The student's images find the teacher's texts, and the student's texts the teacher's images.

    L = (CE_diag(scale * x V^T) + CE_diag(scale * y U^T)) / 2, x and y the student's image and text
    features, U and V the teacher's.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm).
        learnable: whether the scale is trained; it then stays within [1, max_logit_scale] after
            each step.
        max_logit_scale: highest scale; null leaves it unbounded.
        scale_is_log: false uses the logarithm itself for a factor, 2.66 at first, as the authors'
            code does.

    Source: CLIP-KD, equation 9 (ICL). Differs from the authors' code in taking the exponential of
        the scale's logarithm.
    """

    direction = "one_way"
    takes = "pair"
    crosses_ranks = "teacher features"
    paper = "Yang et al. 2024, arXiv:2307.12732"

    log_scale: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive = 14.285714285714286,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        scale_is_log: bool = True,
    ) -> None:
        super().__init__()
        self.learnable = learnable
        self.max_logit_scale = max_logit_scale
        self.scale_is_log = scale_is_log
        add_log_scale(self, logit_scale, learnable)

    def forward(
        self,
        student: Sequence[Float[Tensor, "B _"]],
        teacher: Sequence[Float[Tensor, "B _"]],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        scale = self.log_scale.exp() if self.scale_is_log else self.log_scale
        image, text = self.mapped(student)
        their_image, their_text = (unit(side.detach()) for side in teacher)
        matches = own_columns(len(image), image.device)
        from_image = F.cross_entropy(scale * image @ gather(their_text).T, matches)
        return (from_image + F.cross_entropy(scale * text @ gather(their_image).T, matches)) / 2

    def commit(self, step: int) -> None:
        if self.learnable and self.scale_is_log:
            clamp_log_scale(self.log_scale, self.max_logit_scale)


class RelationalKL(Distiller):
    """Divergence from the teacher's image-to-text and text-to-image distributions over the batch to
    the student's.

    L = (KL(Q, Z) + KL(Q^T, Z^T)) / 2. Widths may differ; no map is needed.

    Args:
        logit_scale: initial factor on the student's cosines (not its logarithm).
        learnable: whether it is trained; it then stays within [1, max_logit_scale] after each step.
        max_logit_scale: highest scale; null leaves it unbounded.
        teacher_logit_scale: factor on the teacher's cosines.

    Source: CLIP-KD, equation 3 (CRD).
    """

    direction = "one_way"
    takes = "pair"
    crosses_ranks = "features of both towers of both models, the student's with gradient"
    paper = "Yang et al. 2024, arXiv:2307.12732"

    log_scale: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive = 14.285714285714286,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        teacher_logit_scale: Positive = 100.0,
    ) -> None:
        super().__init__()
        self.learnable = learnable
        self.max_logit_scale = max_logit_scale
        self.teacher_logit_scale = teacher_logit_scale
        add_log_scale(self, logit_scale, learnable)

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        require_pairs(self, student_width, teacher_width)

    def forward(
        self,
        student: Sequence[Float[Tensor, "B _"]],
        teacher: Sequence[Float[Tensor, "B _"]],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        ours = cross_logits(unit(student[0]), unit(student[1]), self.log_scale.exp())
        theirs = cross_logits(
            unit(teacher[0].detach()), unit(teacher[1].detach()), self.teacher_logit_scale
        )
        return (soft_kl(theirs[0], ours[0]) + soft_kl(theirs[1], ours[1])) / 2

    def commit(self, step: int) -> None:
        if self.learnable:
            clamp_log_scale(self.log_scale, self.max_logit_scale)


class GradientMatch(_Projecting):
    """Match the gradients that the contrastive loss sends to the student's features with those that
    it sends to the teacher's.

    With queries P, keys K, softmax S of P K^T / tau and D = (S - I) / (tau N), the gradients are D
    K and D^T P, for (image, text) and (text, image); L sums the four mean squared differences. They
    are tiny: the authors weigh the term 1e8.

    Args:
        logit_scale: initial factor on the student's cosines (not its logarithm).
        learnable: whether it is trained; it then stays within [1, max_logit_scale] after each step.
        max_logit_scale: highest scale; null leaves it unbounded.
        teacher_logit_scale: factor on the teacher's cosines.
        gd_temperature: "inverse_scale": tau = 1 / scale, as the paper says; "scale": tau = scale,
            as the authors' code does, which explains its weight.

    Source: CLIP-KD, equations 5 to 8 (GD). Differs in computing the keys' gradient as one product
        instead of an N x D x N tensor.
    """

    direction = "one_way"
    takes = "pair"
    crosses_ranks = (
        "features of both towers of both models and the keys' gradients, the student's with"
        " gradient"
    )
    paper = "Yang et al. 2024, arXiv:2307.12732"

    log_scale: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive = 14.285714285714286,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        teacher_logit_scale: Positive = 100.0,
        gd_temperature: Literal["inverse_scale", "scale"] = "inverse_scale",
    ) -> None:
        super().__init__()
        self.learnable = learnable
        self.max_logit_scale = max_logit_scale
        self.teacher_logit_scale = teacher_logit_scale
        self.gd_temperature = gd_temperature
        add_log_scale(self, logit_scale, learnable)

    def forward(
        self,
        student: Sequence[Float[Tensor, "B _"]],
        teacher: Sequence[Float[Tensor, "B _"]],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        ours = self._gradients(self.mapped(student), self.log_scale.exp())
        with torch.no_grad():
            theirs = self._gradients(
                [unit(side) for side in teacher],
                torch.full_like(self.log_scale, self.teacher_logit_scale),
            )
        return torch.stack(
            [F.mse_loss(our, their) for our, their in zip(ours, theirs, strict=True)]
        ).sum()

    def _gradients(self, pair: list[Tensor], scale: Tensor) -> list[Tensor]:
        """Gradients to this rank's queries `[B, D]` and to all ranks' keys `[N, D]`, in both
        directions."""
        factor = scale if self.gd_temperature == "inverse_scale" else 1 / scale
        gradients = []
        for queries, keys in (pair, pair[::-1]):
            everywhere = gather(keys)
            error = (factor * queries @ everywhere.T).softmax(dim=1)
            matches = F.one_hot(own_columns(len(queries), queries.device), len(everywhere))
            error = (error - matches) * (factor / (len(queries) * world_size()))
            gradients += [error @ everywhere, all_reduce_sum(error.T @ queries)]
        return gradients

    def commit(self, step: int) -> None:
        if self.learnable:
            clamp_log_scale(self.log_scale, self.max_logit_scale)
