"""The context of an autograd function."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkd_cli.numerics.autograd import Context


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values * factor

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, None]:
        return (grad * ctx.factor if ctx.needs_input_grad[0] else None), None


def test_what_forward_sets_is_read_by_backward():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    Scaled.apply(values, 3.0).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([3.0, 3.0]))
