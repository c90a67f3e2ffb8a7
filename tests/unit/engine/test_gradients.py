from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.ranks import run_on_ranks
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.engine.gradients import average_gradients, gradient_norm


def parameters(*gradients: float | None) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(2)) for _ in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.full((2,), gradient)
    return found


def test_the_norm_of_whole_gradients_is_that_of_all_numbers_together():
    assert float(gradient_norm(parameters(3.0, None, 4.0))) == pytest.approx(50**0.5)


def test_gradients_of_one_process_stay_unchanged():
    every = parameters(3.0, None)
    average_gradients(every)
    assert every[0].grad is not None and every[0].grad.tolist() == [3.0, 3.0]
    assert every[1].grad is None


def averaged() -> list[list[float] | None]:
    every = parameters(*((2.0, None, None) if rank() == 0 else (4.0, 6.0, None)))
    average_gradients(every)
    return [None if each.grad is None else each.grad.tolist() for each in every]


@pytest.mark.slow
def test_a_gradient_that_only_some_processes_have_counts_as_zero_on_the_others():
    for found in run_on_ranks(averaged, 2):
        assert found == [[3.0, 3.0], [3.0, 3.0], None]
