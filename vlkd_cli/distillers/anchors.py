"""Queues of anchor features, and the cross-entropy between two sides' similarities to them,
streamed over the queue.

One pass over the queue gives value and gradient. With z = student . anchor / tau_s, y = teacher .
anchor / tau_t, both softmaxes are summed up with running maxima, as are sum p z, sum p y and the
anchors weighted by each softmax; rescaling to a new maximum touches B x D numbers:

    CE = lse(z) - <p, z>,   KL = CE + <p, y> - lse(y),   dL/dstudent = (sum_k q_k anchor_k - sum_k
    p_k anchor_k) / tau_s.

Nothing of the queue is saved for the backward pass, so it may be written to at any time and is
never copied.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.numerics.autograd import Context

TILE_ENTRIES = 2**20
"""Entries of the similarity tiles that are held at a time, for each side."""


class AnchorQueue(nn.Module):
    """A ring of the last `size` features, as rows; equal on every rank.

    Args:
        size: number of rows.
        width: of the features.
        seed: of its first content, so that every rank starts alike.
        unit_rows: start from rows of length 1; otherwise each entry is uniform in +-sqrt(3 /
            width), rows of length 1 in the mean.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, width: int, *, seed: int, unit_rows: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        if unit_rows:
            rows = torch.nn.functional.normalize(
                torch.randn(size, width, generator=generator), dim=1
            )
        else:
            rows = (torch.rand(size, width, generator=generator) * 2 - 1) * math.sqrt(3 / width)
        self.register_buffer("rows", rows)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, local: Float[Tensor, "B D"]) -> None:
        """Write the rows of all ranks, in rank order, over the oldest ones; wraps around at the
        end."""
        features = gather_without_grad(local).to(self.rows.dtype)
        size = len(self.rows)
        # Of more rows than fit only the last ones stay, where they would have landed. The position
        # is not read, which would wait for a GPU.
        surplus = max(len(features) - size, 0)
        offsets = torch.arange(surplus, len(features), device=features.device)
        self.rows.index_copy_(0, (self.position + offsets) % size, features[surplus:])
        self.position.add_(len(features)).remainder_(size)


class _Running:
    """A softmax-weighted sum of rows that grows tile by tile: the largest logit so far, the sum of
    exponentials, and moments under it."""

    def __init__(self, rows: int, width: int | None, like: Tensor) -> None:
        self.highest = torch.full((rows, 1), -torch.inf, dtype=like.dtype, device=like.device)
        self.total = torch.zeros_like(self.highest)
        self.weighted = (
            None
            if width is None
            else torch.zeros(rows, width, dtype=like.dtype, device=like.device)
        )
        self.gaps = torch.zeros_like(self.highest)

    def add(self, logits: Tensor, anchors: Tensor, gaps: Tensor | None) -> None:
        """Take in a tile: its logits [B, K], which are overwritten, its anchors [K, D], and what is
        to be averaged under the softmax."""
        highest = torch.maximum(self.highest, logits.amax(dim=1, keepdim=True))
        shrink = (self.highest - highest).exp_()
        weights = logits.sub_(highest).exp_()
        self.highest = highest
        self.total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
        if self.weighted is not None:
            self.weighted.mul_(shrink).addmm_(weights, anchors)
        if gaps is not None:
            self.gaps.mul_(shrink).add_(weights.mul_(gaps).sum(dim=1, keepdim=True))

    @property
    def lse(self) -> Tensor:
        return self.highest + self.total.log()


class _QueueLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        student: Tensor,
        teacher: Tensor,
        own: Tensor | None,
        student_anchors: Tensor,
        teacher_anchors: Tensor,
        student_temperature: float,
        teacher_temperature: float,
        subtracts_entropy: bool,
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        rows = len(student)
        ours, theirs = student / student_temperature, teacher / teacher_temperature
        width = student.shape[1] if wants_gradient else None
        learned, target = _Running(rows, width, student), _Running(rows, width, student)

        def visit(z: Tensor, y: Tensor) -> Tensor:
            """What is averaged under the teacher's softmax."""
            return y - z if subtracts_entropy else -z

        height = max(1, TILE_ENTRIES // rows)
        for top in range(0, len(student_anchors), height):
            anchors = student_anchors[top : top + height]
            z, y = ours @ anchors.T, theirs @ teacher_anchors[top : top + height].T
            gaps = visit(z, y)
            target.add(y, anchors, gaps)
            learned.add(z, anchors, None)
        gradient = None
        if own is not None:
            # The own teacher is one more anchor for each row, and another for each.
            z, y = (ours * own).sum(dim=1, keepdim=True), (theirs * own).sum(dim=1, keepdim=True)
            gaps = visit(z, y)
            for side, logits in ((target, y), (learned, z)):
                highest = torch.maximum(side.highest, logits)
                shrink, weight = (side.highest - highest).exp_(), (logits - highest).exp_()
                side.highest = highest
                side.total.mul_(shrink).add_(weight)
                side.gaps.mul_(shrink).add_(weight * gaps)
                if side.weighted is not None:
                    side.weighted.mul_(shrink).add_(weight * own)
        loss = learned.lse + target.gaps / target.total
        if subtracts_entropy:
            loss = loss - target.lse
        if learned.weighted is not None and target.weighted is not None:
            gradient = (
                learned.weighted.div_(learned.total)
                .sub_(target.weighted.div_(target.total))
                .div_(student_temperature * rows)
            )
        ctx.save_for_backward(gradient)
        return loss.mean()

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (grads[0] * gradient, *[None] * 7)


def queue_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B E"],
    student_anchors: Float[Tensor, "K D"],
    teacher_anchors: Float[Tensor, "K E"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    own_teacher: bool = False,
    subtracts_entropy: bool = False,
) -> Float[Tensor, ""]:
    """Mean cross-entropy from the teacher's softmax over its anchors to the student's over its own;
    no gradient to the teacher.

    Args:
        student, teacher: normalized rows.
        own_teacher: the teacher's row is one more anchor of its sample, for both sides (widths are
            then equal).
        subtracts_entropy: the divergence instead of the cross-entropy.
    """
    teacher = teacher.detach()
    own = teacher if own_teacher else None
    return cast(
        Tensor,
        _QueueLoss.apply(
            student,
            teacher,
            own,
            student_anchors,
            teacher_anchors,
            student_temperature,
            teacher_temperature,
            subtracts_entropy,
        ),
    )


class _AnchorContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        student: Tensor,
        positive: Tensor,
        anchors: Tensor,
        temperature: float,
        adds_positive: bool,
    ) -> Tensor:
        rows, wants_gradient = len(student), ctx.needs_input_grad[0]
        ours = student / temperature
        matches = (ours * positive).sum(dim=1, keepdim=True)
        running = _Running(rows, student.shape[1] if wants_gradient else None, student)
        if adds_positive:
            running.highest, running.total = matches.clone(), torch.ones_like(matches)
            if running.weighted is not None:
                running.weighted.copy_(positive)
        height = max(1, TILE_ENTRIES // max(rows, 1))
        for top in range(0, len(anchors), height):
            tile = anchors[top : top + height]
            running.add(ours @ tile.T, tile, None)
        gradient = None
        if running.weighted is not None:
            gradient = running.weighted.div_(running.total).sub_(positive)
            gradient = gradient.div_(temperature * rows)
        ctx.save_for_backward(gradient)
        return (running.lse - matches).mean()

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (grads[0] * gradient, *[None] * 4)


def anchor_contrast(
    student: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    anchors: Float[Tensor, "K D"],
    *,
    temperature: float,
    adds_positive: bool,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding each row's positive among the anchors, streamed over them; the
    gradient goes to the student alone.

    Args:
        student, positive: rows of length 1, or whatever the cosine is meant to be of.
        anchors: the negatives; may be written to before the backward pass.
        temperature: divides the products.
        adds_positive: the positive is not one of the anchors and is added to them.
    """
    arguments = (student, positive.detach(), anchors.detach(), temperature, adds_positive)
    return cast(Tensor, _AnchorContrast.apply(*arguments))
