"""Gradients over all processes: averaged, measured and unscaled, where weights are divided among
processes too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.distributed.sharding import divided_of, is_divided


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks. A parameter without a gradient on any rank
    stays without, one with a gradient on some counts as zero on the others."""
    if not parameters:
        return
    used = torch.tensor([parameter.grad is not None for parameter in parameters]).int()
    used = collectives.sum_without_grad(used)
    present = [one for one, count in zip(parameters, used.tolist(), strict=True) if count]
    for dtype in dict.fromkeys(parameter.dtype for parameter in present):
        same = [parameter for parameter in present if parameter.dtype == dtype]
        flat = torch.cat([_gradient(parameter).flatten() for parameter in same])
        parts = collectives.mean_without_grad(flat).split([one.numel() for one in same])
        for parameter, part in zip(same, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, the same on every rank."""
    every = list(parameters)
    own = [one.grad for one in every if one.grad is not None and is_slice(one)]
    whole = [one.grad for one in every if one.grad is not None and not is_slice(one)]
    if not any(map(is_slice, every)):
        return torch.nn.utils.get_total_norm(whole, foreach=True)
    device = every[0].device
    squares = collectives.sum_without_grad(_squares(own, device)) + _squares(whole, device)
    return squares.sqrt().float()


def is_slice(parameter: Tensor) -> bool:
    """Whether it is this rank's slice of a divided parameter, as optimizers have them."""
    return is_divided(divided_of(parameter))


class ShardedScaler(torch.amp.GradScaler):
    """The scaler of fp16 where a rank sees the gradients of its slices only: an overflow on one is
    an overflow on all."""

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        for overflows in found.values():
            overflows.copy_(collectives.sum_without_grad(overflows).clamp(max=1))
        return found


def gradient_scaler(
    scaler: torch.amp.GradScaler, parameters: Iterable[nn.Parameter]
) -> torch.amp.GradScaler:
    """The scaler for these parameters: the given one, or where they are slices its counterpart."""
    if runtime.world_size() == 1 or not any(map(is_slice, parameters)):
        return scaler
    return ShardedScaler(scaler._device, enabled=scaler.is_enabled())


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _squares(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()
