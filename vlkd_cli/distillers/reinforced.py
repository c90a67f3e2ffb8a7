"""Distillation from an ensemble of teachers, as MobileCLIP's data set reinforcement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import blocked_infonce, blocked_siglip
from vlkd_cli.distillers.distiller import Widths, widths_of
from vlkd_cli.distillers.logit_scale import CLIP_SCALE, ScaledDistiller
from vlkd_cli.distillers.similarity import (
    Pair,
    cross_logits,
    soft_cross_entropy,
    unit,
)
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import NonNegative, Positive, PositiveInt


class Reinforced(ScaledDistiller):
    """Match the student pair's distributions over the batch with the mean of several teachers'
    distributions.

    P = mean_k softmax(scale_k U_k V_k^T), averaged after the softmax, likewise for texts; L =
    distill_weight * (CE(P, Z) + CE(P', Z^T)) / 2 + contrastive_weight * InfoNCE(Z). The teacher
    side is (image, text) of the first teacher, then of the second, and so on: `teacher:
    [clip_image, clip_text, other_image, other_text]`, of any builder, or stored features. Features
    of several teachers, concatenated in one output, are split by teacher_widths. With a third
    student output, of synthetic captions, each teacher gives (image, text, synthetic text), and the
    loss of the pair with the synthetic text is added.

    Args:
        contrastive_weight, distill_weight: 0 and 1 as for DataCompDR-12M; 0.25 and 0.75 as for
            DataCompDR-1B.
        logit_scale: initial factor on the student's cosines (not its logarithm).
        learnable: whether it (and the bias of "sigmoid") is trained; it then stays within [1,
            max_logit_scale] after each step.
        teacher_logit_scales: factor on each teacher's cosines; a single one serves all teachers.
        teacher_widths: widths of the teachers whose features are concatenated.
        loss: "softmax" as above; "sigmoid" judges each pair on its own, with p = mean_k
            sigmoid(scale_k <u, v> + bias_k).
        logit_bias: initial bias of the student's logits, for "sigmoid".
        teacher_logit_biases: bias of each teacher's logits, for "sigmoid"; a single one serves all
            teachers.
        sigmoid_targets: "signed" is the authors' softplus(-(2p - 1) z), whose gradient vanishes at
            p = 1/2; "probability" the soft binary cross-entropy. Both are summed over pairs and
            divided by N.

    Source: Vasu et al., MobileCLIP, CVPR 2024, arXiv:2311.17049, equation 2; apple/ml-mobileclip,
    training/open_clip_v2.patch (DRClipLoss, DistillSigLipLoss). Differs in normalizing the texts'
    targets over images, where that code without local_loss transposes the images' targets.
    """

    direction = "one_way"
    minimum_batch = 2
    crosses_ranks = "features of both towers of all models, the student's with gradient"
    paper = "Vasu et al. 2024, arXiv:2311.17049"
    formula = (
        r"L = \frac{w_d}{2} \left[ \mathrm{CE}(P, Z) + \mathrm{CE}(P', Z^{\top}) \right]"
        r" + w_c L_{\mathrm{InfoNCE}}(Z), \quad P = \frac{1}{K} \sum_k \sigma(s_k U_k V_k^{\top}),"
        r" \quad P' = \frac{1}{K} \sum_k \sigma(s_k V_k U_k^{\top})"
    )
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "loss": {"softmax": ("logit_bias", "teacher_logit_biases", "sigmoid_targets")},
    }

    bias: Tensor

    def __init__(
        self,
        *,
        contrastive_weight: NonNegative = 0.0,
        distill_weight: NonNegative = 1.0,
        logit_scale: Positive = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        teacher_logit_scales: Sequence[Positive] = (100.0,),
        teacher_widths: Sequence[PositiveInt] | None = None,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        logit_bias: float = -10.0,
        teacher_logit_biases: Sequence[float] = (-10.0,),
        sigmoid_targets: Literal["signed", "probability"] = "signed",
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        self.contrastive_weight = contrastive_weight
        self.distill_weight = distill_weight
        self.teacher_logit_scales = tuple(teacher_logit_scales)
        self.teacher_widths = None if teacher_widths is None else list(teacher_widths)
        self.loss = loss
        self.teacher_logit_biases = tuple(teacher_logit_biases)
        self.sigmoid_targets = sigmoid_targets
        if loss == "sigmoid":
            self.add_scalar("bias", logit_bias)

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert teacher is not None
        ours, theirs = widths_of(student), widths_of(teacher)
        if len(theirs) % len(ours):
            raise RecipeError(
                f"distiller 'reinforced' takes {len(ours)} outputs of each teacher, as many as of"
                f" the student, but got {len(theirs)}. Write student: [image, text] and"
                " teacher: [image_1, text_1, image_2, text_2, ...]."
            )
        if self.teacher_widths is not None and len(theirs) != len(ours):
            raise RecipeError(
                f"teacher_widths of distiller 'reinforced' splits {len(ours)} addresses into"
                f" all teachers, but got {len(theirs)}. Remove teacher_widths: teachers with"
                " their own addresses need no splitting."
            )
        num_teachers = len(self.teacher_widths) if self.teacher_widths else len(theirs) // len(ours)
        for key, given in (
            ("teacher_logit_scales", self.teacher_logit_scales),
            ("teacher_logit_biases", self.teacher_logit_biases),
        ):
            if len(given) not in (1, num_teachers):
                raise RecipeError(
                    f"{key} of distiller 'reinforced' has {len(given)} entries for {num_teachers}"
                    f" teacher{'s' * (num_teachers > 1)}. Give one for all, or one for each."
                )
        if self.teacher_widths is not None and any(
            width != sum(self.teacher_widths) for width in theirs
        ):
            raise RecipeError(
                "teacher_widths of distiller 'reinforced' add up to"
                f" {sum(self.teacher_widths)}, but the teacher outputs have widths {list(theirs)}."
                " Write the widths of their parts."
            )

    def forward(
        self,
        student: Pair | tuple[Float[Tensor, "B _"], Float[Tensor, "B _"], Float[Tensor, "B _"]],
        teacher: Sequence[Float[Tensor, "B _"]],
    ) -> Float[Tensor, ""]:
        image, *texts = (unit(side) for side in student)
        teachers = self._teachers([side.detach() for side in teacher], len(student))
        terms = [
            self._pair(image, text, [(one[0], one[number]) for one in teachers])
            for number, text in enumerate(texts, start=1)
        ]
        return torch.stack(terms).sum()

    def _teachers(self, sides: list[Tensor], outputs: int) -> list[list[Tensor]]:
        """The normalized outputs of each teacher."""
        groups = [sides[start : start + outputs] for start in range(0, len(sides), outputs)]
        if self.teacher_widths is not None:
            cut = [side.split(self.teacher_widths, dim=1) for side in groups[0]]
            groups = [
                [parts[number] for parts in cut] for number in range(len(self.teacher_widths))
            ]
        return [[unit(side) for side in group] for group in groups]

    def _pair(self, image: Tensor, text: Tensor, teachers: list[tuple[Tensor, Tensor]]) -> Tensor:
        scale = self.scale
        scales = self.teacher_logit_scales * (
            len(teachers) if len(self.teacher_logit_scales) == 1 else 1
        )
        loss = 0 * scale
        if self.loss == "sigmoid":
            biases = self.teacher_logit_biases * (
                len(teachers) if len(self.teacher_logit_biases) == 1 else 1
            )
            loss = loss + 0 * self.bias
            if self.contrastive_weight:
                loss = loss + self.contrastive_weight * blocked_siglip(
                    image, text, scale, self.bias
                )
            if self.distill_weight:
                logits = scale * image @ gather(text).T + self.bias
                likely = [
                    (s * u @ gather_without_grad(v).T + b).sigmoid()
                    for (u, v), s, b in zip(teachers, scales, biases, strict=True)
                ]
                loss = (
                    loss
                    + self.distill_weight
                    / len(image)
                    * self._sigmoid_terms(logits, torch.stack(likely).mean(dim=0)).sum()
                )
            return loss
        if self.contrastive_weight:
            loss = loss + self.contrastive_weight * blocked_infonce(image, text, scale)
        if self.distill_weight:
            ours = cross_logits(image, text, scale)
            theirs = [cross_logits(u, v, s) for (u, v), s in zip(teachers, scales, strict=True)]
            for direction, logits in enumerate(ours):
                target = torch.stack([pair[direction].softmax(dim=1) for pair in theirs]).mean(
                    dim=0
                )
                loss = loss + self.distill_weight / 2 * soft_cross_entropy(target, logits)
        return loss

    def _sigmoid_terms(self, logits: Tensor, likely: Tensor) -> Tensor:
        if self.sigmoid_targets == "signed":
            return -F.logsigmoid((2 * likely - 1) * logits)
        # softplus(z) - p z: where both probabilities are small, so are both parts of the gradient
        # sigmoid(z) - p, and no digits cancel.
        return -F.logsigmoid(-logits) - likely * logits
