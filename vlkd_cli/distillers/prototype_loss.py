"""Cross-entropy between two sides' assignments to prototypes, streamed over the prototypes.

Views of the student s_v and of the teacher t_u are rows; prototypes W are rows of length 1; logits
are a_v = s_v W^T / tau_s and b_u = t_u W^T / tau_t. Targets are P_u = exp(b_u + shift - r_u), with
one shift for each prototype (a center, a marginal) and r_u what makes each row sum to 1. With a
prior for each prototype on the student's side and pairs (u, v),

    L = mean over pairs and rows of  lse(a_v + log prior) - <P_u, a_v>.

The prototypes are walked in tiles, each multiplied with all views at once. A first walk over the
teacher gives r_u, a second one the loss and the mean of P_u; backward walks a third time and needs
lse and r alone: dL/da_v = (n_v softmax(a_v + log prior) - sum_u P_u) / (pairs
* rows). Tiles of small matrices are stored from the second walk to the third, which saves their
products. Where the inputs are logits already, W is None and a tile is a slice of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.numerics.autograd import Context

STORED_ENTRIES = 2**24
TILE_ENTRIES = 2**21
"""Entries of all views' logits over one tile of prototypes."""


class Targets(NamedTuple):
    """Teacher assignments, without the B x K numbers: exp(b + shift - rows), per view `[U, B]` and
    per prototype `[K]`."""

    temperature: float
    shift: Tensor | None
    rows: Tensor


class Sides(NamedTuple):
    """Stacked views `[V, B, D]` of the student, `[U, B, D]` of the teacher, and the prototypes `[K,
    D]` not normalized, or None."""

    student: Tensor
    teacher: Tensor
    prototypes: Tensor | None

    @property
    def num_prototypes(self) -> int:
        return self.student.shape[2] if self.prototypes is None else len(self.prototypes)


def tiles(sides: Sides) -> Iterator[slice]:
    """Slices of the prototypes."""
    rows = (len(sides.student) + len(sides.teacher)) * sides.student.shape[1]
    width = max(1, TILE_ENTRIES // rows)
    for left in range(0, sides.num_prototypes, width):
        yield slice(left, min(left + width, sides.num_prototypes))


def directions(
    prototypes: Float[Tensor, "K D"],
) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K 1"]]:
    """Prototypes of length 1, and their lengths. A zero prototype stays zero."""
    lengths = prototypes.norm(dim=1, keepdim=True)
    lengths = lengths.masked_fill(lengths <= 1e-12, torch.inf)
    return prototypes / lengths, lengths


def teacher_logits(sides: Sides, some: slice) -> Float[Tensor, "U B K"]:
    """The teacher's cosines (or given logits) over a tile, not divided by a temperature."""
    if sides.prototypes is None:
        return sides.teacher[:, :, some]
    return sides.teacher @ directions(sides.prototypes[some])[0].T


@torch.no_grad()
def softmax_targets(sides: Sides, temperature: float, shift: Float[Tensor, "K"] | None) -> Targets:
    """P = softmax((b - center) / tau), with `shift` = -center / tau."""
    lse = torch.full(
        sides.teacher.shape[:2], -torch.inf, dtype=sides.teacher.dtype, device=sides.teacher.device
    )
    for some in tiles(sides):
        logits = teacher_logits(sides, some) / temperature
        lse = torch.logaddexp(
            lse, (logits if shift is None else logits.add_(shift[some])).logsumexp(dim=2)
        )
    return Targets(temperature, shift, lse)


class _PrototypeLoss(torch.autograd.Function):
    """`forward` returns the loss and, for the moving averages, the sums over rows of the teacher's
    assignments and of its logits."""

    @staticmethod
    def forward(
        ctx: Context,
        student: Tensor,
        prototypes: Tensor | None,
        teacher: Tensor,
        student_temperature: float,
        log_prior: Tensor | None,
        targets: Targets,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sides = Sides(student, teacher, prototypes)
        num_rows, pair_count = student.shape[1], pairs.sum()
        lse = torch.full(student.shape[:2], -torch.inf, dtype=student.dtype, device=student.device)
        matched = torch.zeros((), dtype=torch.float64, device=student.device)
        assigned, logit_sums = (
            torch.empty(sides.num_prototypes, dtype=student.dtype, device=student.device)
            for _ in range(2)
        )
        entries = (len(student) + len(teacher)) * num_rows * sides.num_prototypes
        multiplies = prototypes is not None and any(ctx.needs_input_grad)
        stored: list[tuple[Tensor, Tensor]] | None = (
            [] if multiplies and entries <= STORED_ENTRIES else None
        )
        for some in tiles(sides):
            logits, wanted = _tile(
                sides, some, student_temperature, targets, pairs, assigned, logit_sums
            )
            matched += torch.linalg.vecdot(wanted, logits).sum().double()
            biased = logits if log_prior is None else logits.add_(log_prior[some])
            lse = torch.logaddexp(lse, biased.logsumexp(dim=2))
            if stored is not None:
                stored.append((biased, wanted))
        ctx.save_for_backward(
            student, teacher, pairs, lse, *([] if prototypes is None else [prototypes])
        )
        ctx.settings, ctx.stored = (student_temperature, log_prior, targets), stored
        loss = ((pairs.sum(dim=0)[:, None] * lse).sum().double() - matched) / (
            pair_count * num_rows
        )
        ctx.mark_non_differentiable(assigned, logit_sums)
        return loss.to(student.dtype), assigned, logit_sums

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, pairs, lse, *rest = ctx.saved_tensors
        sides = Sides(student, teacher, rest[0] if rest else None)
        student_temperature, log_prior, targets = ctx.settings
        stored, ctx.stored = ctx.stored, None
        factor = grads[0] / (pairs.sum() * student.shape[1] * student_temperature)
        counts = pairs.sum(dim=0)[:, None, None]
        of_student = torch.zeros_like(student)
        of_prototypes = (
            torch.empty_like(sides.prototypes)
            if sides.prototypes is not None and ctx.needs_input_grad[1]
            else None
        )
        for number, some in enumerate(tiles(sides)):
            if stored is not None:
                logits, wanted = stored[number]
            else:
                logits, wanted = _tile(sides, some, student_temperature, targets, pairs, None, None)
                logits = logits if log_prior is None else logits.add_(log_prior[some])
            slope = logits.sub_(lse[:, :, None]).exp_().mul_(counts).sub_(wanted)
            if sides.prototypes is None:
                of_student[:, :, some] = slope
                continue
            unit_rows, lengths = directions(sides.prototypes[some])
            of_student.view(-1, student.shape[2]).addmm_(slope.flatten(0, 1), unit_rows)
            if of_prototypes is not None:
                of_unit = slope.flatten(0, 1).T @ student.flatten(0, 1)
                along = torch.linalg.vecdot(of_unit, unit_rows)[:, None]
                of_prototypes[some] = of_unit.addcmul_(unit_rows, along, value=-1).div_(lengths)
        return (
            of_student.mul_(factor),
            None if of_prototypes is None else of_prototypes.mul_(factor),
            *[None] * 5,
        )


def _tile(
    sides: Sides,
    some: slice,
    temperature: float,
    targets: Targets,
    pairs: Tensor,
    assigned: Tensor | None,
    logit_sums: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The student's logits [V, B, K] over a tile, and the assignments that each view is compared
    with, summed over its pairs."""
    given = teacher_logits(sides, some)
    if logit_sums is not None:
        logit_sums[some] = given.sum(dim=(0, 1))
    assignments = given / targets.temperature
    if targets.shift is not None:
        assignments.add_(targets.shift[some])
    assignments.sub_(targets.rows[:, :, None]).exp_()
    if assigned is not None:
        assigned[some] = assignments.sum(dim=(0, 1))
    if pairs.numel() > 1:
        assignments = torch.einsum("uv,ubk->vbk", pairs, assignments)
    if sides.prototypes is None:
        return sides.student[:, :, some] / temperature, assignments
    return (sides.student @ directions(sides.prototypes[some])[0].T).div_(temperature), assignments


def prototype_loss(
    sides: Sides,
    *,
    student_temperature: float,
    targets: Targets,
    log_prior: Float[Tensor, "K"] | None,
    pairs: Float[Tensor, "U V"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "K"], Float[Tensor, "K"]]:
    """The loss, and the sums over this rank's teacher rows of the assignments and of the raw
    logits; gradient to student and prototypes.

    Args:
        pairs: 1 where teacher view u is a target of student view v, else 0.
    """
    return cast(
        tuple[Tensor, Tensor, Tensor],
        _PrototypeLoss.apply(
            sides.student,
            sides.prototypes,
            sides.teacher.detach(),
            student_temperature,
            log_prior,
            targets,
            pairs,
        ),
    )
