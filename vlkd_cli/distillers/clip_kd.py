"""The terms of CLIP-KD: four ways for one image-text pair of towers to learn from another.

Each takes (image, text) of the student and of the teacher. Where the widths differ, the terms that
compare features carry a linear map from the student's width to the teacher's, one for each
modality, which is trained and then thrown away.

Source: Yang et al., CLIP-KD: An Empirical Study of CLIP Model Distillation, CVPR 2024,
arXiv:2307.12732, section 3; winycg/CLIP-KD, src/open_clip/loss.py:KDClipLoss.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.distiller import Distiller, Widths, widths_of
from vlkd_cli.distillers.logit_scale import CLIP_SCALE, ScaledDistiller
from vlkd_cli.distillers.similarity import (
    Pair,
    cross_logits,
    own_columns,
    soft_kl,
    unit,
)
from vlkd_cli.distributed.collectives import all_reduce_sum, gather
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.recipe.types import Positive, Progress


class _Projecting(Distiller):
    """A distiller that maps the student's features to the teacher's widths where they differ."""

    projections: nn.ModuleList

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert teacher is not None
        generator = torch.Generator().manual_seed(0)
        self.projections = nn.ModuleList()
        for our_width, their_width in zip(widths_of(student), widths_of(teacher), strict=True):
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
        """Student features at the teacher's widths, L2-normalized."""
        return [
            unit(projection(side))
            for projection, side in zip(self.projections, student, strict=True)
        ]


class FeatureDistance(_Projecting):
    """Mean squared distance of the L2-normalized features, image to image plus text to text.

    The mean runs over samples and features, which makes it small: the authors weigh it 2000.

    Source: CLIP-KD, equation 4 (FD).
    """

    direction = "one_way"
    crosses_ranks = "nothing"
    paper = "Yang et al. 2024, arXiv:2307.12732"
    formula = (
        r"L = \frac{1}{N D} \sum_i \left( \|\hat{x}_i - \hat{u}_i\|^2"
        r" + \|\hat{y}_i - \hat{v}_i\|^2 \right), \quad \hat{x} = \frac{x}{\|x\|}"
    )

    def forward(
        self,
        student: Pair,
        teacher: Pair,
    ) -> Float[Tensor, ""]:
        pairs = zip(self.mapped(student), teacher, strict=True)
        return torch.stack(
            [F.mse_loss(ours, unit(theirs.detach())) for ours, theirs in pairs]
        ).sum()


class InteractiveContrast(_Projecting, ScaledDistiller):
    """The student's images find the teacher's texts, and the student's texts the teacher's images.

    L = (CE_diag(scale * x V^T) + CE_diag(scale * y U^T)) / 2, x and y the student's image and text
    features, U and V the teacher's.

    Args:
        scale_is_log: false uses the logarithm itself for a factor, 2.66 at first, as the authors'
            code does.

    Source: CLIP-KD, equation 9 (ICL). Differs from the authors' code in taking the exponential of
        the scale's logarithm.
    """

    direction = "one_way"
    minimum_batch = 2
    crosses_ranks = "teacher features"
    paper = "Yang et al. 2024, arXiv:2307.12732"
    formula = (
        r"L = -\frac{1}{2N} \sum_i \left["
        r" \log \frac{e^{s \cos(x_i, v_i)}}{\sum_j e^{s \cos(x_i, v_j)}}"
        r" + \log \frac{e^{s \cos(y_i, u_i)}}{\sum_j e^{s \cos(y_i, u_j)}} \right]"
    )

    def __init__(
        self,
        *,
        logit_scale: Positive = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        scale_is_log: bool = True,
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        self.scale_is_log = scale_is_log

    def forward(
        self,
        student: Pair,
        teacher: Pair,
    ) -> Float[Tensor, ""]:
        scale = self.scale if self.scale_is_log else self.log_scale
        image, text = self.mapped(student)
        their_image, their_text = (unit(side.detach()) for side in teacher)
        matches = own_columns(len(image), image.device)
        from_image = F.cross_entropy(scale * image @ gather(their_text).T, matches)
        return (from_image + F.cross_entropy(scale * text @ gather(their_image).T, matches)) / 2

    def commit(self, progress: Progress) -> None:
        if self.scale_is_log:
            super().commit(progress)


class RelationalKL(ScaledDistiller):
    """Divergence from the teacher's image-to-text and text-to-image distributions over the batch to
    the student's.

    L = (KL(Q, Z) + KL(Q^T, Z^T)) / 2. Widths may differ; no map is needed.

    Args:
        logit_scale: initial factor on the student's cosines (not its logarithm).
        teacher_logit_scale: factor on the teacher's cosines.

    Source: CLIP-KD, equation 3 (CRD).
    """

    direction = "one_way"
    minimum_batch = 2
    crosses_ranks = "features of both towers of both models, the student's with gradient"
    paper = "Yang et al. 2024, arXiv:2307.12732"
    formula = (
        r"L = \frac{1}{2} \left[ \mathrm{KL}(\sigma(Q) \,\|\, \sigma(Z))"
        r" + \mathrm{KL}(\sigma(Q^{\top}) \,\|\, \sigma(Z^{\top})) \right],"
        r" \quad Z_{ij} = s \cos(x_i, y_j), \quad Q_{ij} = s_t \cos(u_i, v_j)"
    )

    def __init__(
        self,
        *,
        logit_scale: Positive = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        teacher_logit_scale: Positive = 100.0,
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        self.teacher_logit_scale = teacher_logit_scale

    def forward(
        self,
        student: Pair,
        teacher: Pair,
    ) -> Float[Tensor, ""]:
        ours = cross_logits(unit(student[0]), unit(student[1]), self.scale)
        theirs = cross_logits(
            unit(teacher[0].detach()), unit(teacher[1].detach()), self.teacher_logit_scale
        )
        return (soft_kl(theirs[0], ours[0]) + soft_kl(theirs[1], ours[1])) / 2


class GradientMatch(_Projecting, ScaledDistiller):
    """Match the gradients that the contrastive loss sends to the student's features with those that
    it sends to the teacher's.

    With queries P, keys K, softmax S of P K^T / tau and D = (S - I) / (tau N), the gradients are D
    K and D^T P, for (image, text) and (text, image); L sums the four mean squared differences. They
    are tiny: the authors weigh the term 1e8.

    Args:
        logit_scale: initial factor on the student's cosines (not its logarithm).
        teacher_logit_scale: factor on the teacher's cosines.
        gradient_temperature: "inverse_scale": tau = 1 / scale, as in the paper; "scale": tau =
            scale, as in the authors' code, which explains its weight.

    Source: CLIP-KD, equations 5 to 8 (GD). Differs in computing the keys' gradient as one product
        instead of an N x D x N tensor.
    """

    direction = "one_way"
    minimum_batch = 2
    crosses_ranks = (
        "features of both towers of both models and the keys' gradients, the student's with"
        " gradient"
    )
    paper = "Yang et al. 2024, arXiv:2307.12732"
    formula = (
        r"L = \frac{1}{N D} \sum_{(P, K)} \left[ \|E_s K_s - E_t K_t\|^2"
        r" + \|E_s^{\top} P_s - E_t^{\top} P_t\|^2 \right],"
        r" \quad E = \frac{\mathrm{softmax}(P K^{\top} / \tau) - I}{\tau N},"
        r" \quad (P, K) \in \{(X, Y), (Y, X)\}"
    )

    def __init__(
        self,
        *,
        logit_scale: Positive = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        teacher_logit_scale: Positive = 100.0,
        gradient_temperature: Literal["inverse_scale", "scale"] = "inverse_scale",
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        self.teacher_logit_scale = teacher_logit_scale
        self.gradient_temperature = gradient_temperature

    def forward(
        self,
        student: Pair,
        teacher: Pair,
    ) -> Float[Tensor, ""]:
        ours = self._gradients(self.mapped(student), self.scale)
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
        factor = scale if self.gradient_temperature == "inverse_scale" else 1 / scale
        gradients = []
        for queries, keys in (pair, pair[::-1]):
            everywhere = gather(keys)
            error = (factor * queries @ everywhere.T).softmax(dim=1)
            matches = F.one_hot(own_columns(len(queries), queries.device), len(everywhere))
            error = (error - matches) * (factor / (len(queries) * world_size()))
            gradients += [error @ everywhere, all_reduce_sum(error.T @ queries)]
        return gradients
