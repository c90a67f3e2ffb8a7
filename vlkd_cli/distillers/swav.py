"""Swapped assignments of views to prototypes (SwAV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkd_cli.distillers.anchors import AnchorQueue
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.numerics.autograd import Context
from vlkd_cli.recipe.types import NonNegativeInt, Positive, PositiveInt, Progress


class SwAV(Distiller):
    """Predict the balanced assignment of one view to prototypes from every other view.

    The student is all pictures of a sample, the teacher the first U of them, without gradient:
    `student: [image.project, image.project@local], teacher: image.project`. Codes q_u are those of
    Sinkhorn's iteration on the cosines of picture u to the prototypes over epsilon, over the rows
    of all ranks; L = mean over u != v of CE(q_u, softmax(cosines of picture v / temperature)). The
    prototypes belong to this objective: give `distillers.swav.prototypes` a start of its own with
    `optimizer.groups`, as the authors freeze them for an epoch.

    Args:
        num_prototypes: rows of the prototype layer.
        temperature: divides the student's cosines.
        epsilon: divides the cosines of the codes; smaller is sharper.
        num_iterations: of Sinkhorn, each over the prototypes and over the rows.
        queue_size: earlier rows of each code's picture that take part in its Sinkhorn iteration,
            for small batches; null for none.
        queue_from_epoch: when the queue starts to fill; it is used once it is full.

    Source: Caron et al., SwAV, NeurIPS 2020, arXiv:2006.09882, equations 2 to 5;
    facebookresearch/swav, main_swav.py. Differs in iterating in logarithms, and in moving the queue
    once per optimizer step.
    """

    direction = "one_way"
    skips_own_picture = True
    crosses_ranks = "a sum for each prototype and iteration; rows that enter the queue"
    paper = "Caron et al., NeurIPS 2020, arXiv:2006.09882"
    formula = (
        r"L = -\frac{1}{U (V - 1)} \sum_{u \le U} \sum_{v \neq u}"
        r" q_u \cdot \log \mathrm{softmax}\left(\frac{z_v C^{\top}}{\tau}\right),"
        r" \quad q_u = \mathrm{Sinkhorn}\left(\frac{z_u C^{\top}}{\epsilon}\right)"
    )
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "queue_size": {None: ("queue_from_epoch",)},
    }

    prototypes: nn.Parameter
    num_queued: Tensor

    def __init__(
        self,
        *,
        num_prototypes: PositiveInt = 3000,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        num_iterations: PositiveInt = 3,
        queue_size: PositiveInt | None = None,
        queue_from_epoch: NonNegativeInt = 15,
    ) -> None:
        super().__init__()
        self.num_prototypes, self.temperature, self.epsilon = num_prototypes, temperature, epsilon
        self.num_iterations = num_iterations
        self.queue_size, self.queue_from_epoch = queue_size, queue_from_epoch
        self.queues = nn.ModuleList()

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, tuple) and isinstance(teacher, tuple)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(self.num_prototypes, student[0], generator=generator)
        self.prototypes = nn.Parameter(unit(rows))
        if self.queue_size is not None:
            for number in range(len(teacher)):
                self.queues.append(
                    AnchorQueue(self.queue_size, student[0], seed=number, unit_rows=True)
                )
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        student: Sequence[Float[Tensor, "B D"]],
        teacher: Sequence[Float[Tensor, "B D"]],
        *,
        progress: Progress = Progress(),
    ) -> Float[Tensor, ""]:
        prototypes = unit(self.prototypes)
        keys = [unit(view.detach()) for view in teacher]
        with torch.no_grad():
            codes = [self._codes(number, key, prototypes) for number, key in enumerate(keys)]
        if self.queue_size is not None and progress.epoch >= self.queue_from_epoch:
            self.stage(*keys)
        views = torch.stack([unit(view) for view in student])
        total: Tensor = _Predictions.apply(views, prototypes, codes, self.temperature)
        return total / (len(codes) * (len(student) - 1))

    def commit(self, progress: Progress) -> None:
        for keys in self.take_staged():
            for queue, rows in zip(self.queues, keys, strict=True):
                queue.push(rows)  # type: ignore[operator]
            self.num_queued += len(keys[0]) * world_size()

    def _codes(
        self, number: int, rows: Float[Tensor, "B D"], prototypes: Float[Tensor, "K D"]
    ) -> Float[Tensor, "B K"]:
        count = len(rows)
        if self.queue_size is not None and self.num_queued >= self.queue_size:
            # Every rank holds the whole queue; each brings a part of it, so that a row counts once.
            earlier = self.queues[number].rows[rank() :: world_size()]  # type: ignore[index]
            rows = torch.cat([rows, earlier.to(rows.dtype)])
        scores = (rows @ prototypes.T).div_(self.epsilon)
        # A copy, so that the rows of the queue are not held.
        return sinkhorn(scores, self.num_iterations)[:count].clone()


class _Predictions(torch.autograd.Function):
    """Sum over views of the mean over rows of CE(codes of the other views, view . prototypes /
    temperature).

    Value and gradients come from one walk over the views, so that of the rows x prototypes numbers
    those of one view are held at a time.
    """

    @staticmethod
    def forward(
        ctx: Context,
        views: Tensor,
        prototypes: Tensor,
        codes: Sequence[Tensor],
        temperature: float,
    ) -> Tensor:
        total, every_code = views.new_zeros(()), torch.stack(list(codes)).sum(dim=0)
        of_views, of_prototypes = torch.empty_like(views), torch.zeros_like(prototypes)
        for number, view in enumerate(views):
            is_coded = number < len(codes)
            others = every_code - codes[number] if is_coded else every_code
            num_others = len(codes) - is_coded
            logits = (view @ prototypes.T).div_(temperature)
            lse = logits.logsumexp(dim=1)
            total += (num_others * lse - torch.linalg.vecdot(others, logits)).mean()
            if any(ctx.needs_input_grad):
                slope = logits.sub_(lse[:, None]).exp_().mul_(num_others).sub_(others)
                slope.div_(temperature * len(view))
                of_views[number] = slope @ prototypes
                of_prototypes.addmm_(slope.T, view)
        ctx.save_for_backward(of_views, of_prototypes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_views, of_prototypes = ctx.saved_tensors
        return grads[0] * of_views, grads[0] * of_prototypes, None, None


def sinkhorn(scores: Float[Tensor, "R K"], num_iterations: int) -> Float[Tensor, "R K"]:
    """Rows that sum to 1 while all prototypes get the same total over the rows of all ranks.

    Args:
        scores: logarithms, up to a constant, of what is balanced; they are overwritten. Ranks may
            hold different numbers of rows.
        num_iterations: each balances the prototypes, then the rows.
    """
    for _ in range(num_iterations):
        totals = gather_without_grad(scores.logsumexp(dim=0)[None]).logsumexp(dim=0)
        scores -= totals
        scores -= scores.logsumexp(dim=1, keepdim=True)
    return scores.exp_()
