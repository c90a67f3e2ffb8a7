from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.ranks import run_on_ranks
from vlkd_cli.distributed import collectives, runtime

WORLD = 3


def exchange() -> dict[str, Any]:
    """A loss that mixes rows of all ranks, through each differentiable collective, with this rank's
    gradient."""
    whole = torch.arange(12, dtype=torch.float64).reshape(6, 2) / 7
    rows = whole.chunk(WORLD)[runtime.rank()].clone().requires_grad_()
    everywhere = collectives.gather(rows)
    # Mean over own rows of a quadratic form over all rows.
    (rows @ everywhere.T).pow(2).sum(1).mean().backward()
    gathered = rows.grad.clone() / WORLD
    rows.grad = None
    total = collectives.all_reduce_sum(rows.pow(2).sum(0))
    (rows * total).sum(1).mean().backward()
    reduced = rows.grad.clone() / WORLD
    ragged = collectives.gather_ragged(torch.full((runtime.rank(), 2), float(runtime.rank())))
    return {
        "gathered": gathered.numpy(),
        "reduced": reduced.numpy(),
        "values": everywhere.detach().numpy(),
        "ragged": ragged.numpy(),
        "objects": collectives.gather_objects(runtime.rank() * 10),
        "broadcast": collectives.broadcast_object({"rank": runtime.rank()}),
        "has_graph": collectives.gather_without_grad(rows).requires_grad,
    }


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_on_ranks(exchange, WORLD)


def test_gather_gives_every_rank_the_rows_in_rank_order(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        np.testing.assert_array_equal(answer["values"], np.arange(12).reshape(6, 2) / 7)


def test_gathers_gradient_averaged_over_ranks_is_the_single_process_gradient(
    answers: list[dict[str, Any]],
) -> None:
    whole = (torch.arange(12, dtype=torch.float64).reshape(6, 2) / 7).requires_grad_()
    (whole @ whole.T).pow(2).sum(1).mean().backward()
    np.testing.assert_allclose(
        np.concatenate([a["gathered"] for a in answers]), whole.grad.numpy(), rtol=1e-12
    )


def test_the_sums_gradient_averaged_over_ranks_is_the_single_process_gradient(
    answers: list[dict[str, Any]],
) -> None:
    whole = (torch.arange(12, dtype=torch.float64).reshape(6, 2) / 7).requires_grad_()
    (whole * whole.pow(2).sum(0)).sum(1).mean().backward()
    np.testing.assert_allclose(
        np.concatenate([a["reduced"] for a in answers]), whole.grad.numpy(), rtol=1e-12
    )


def test_ragged_rows_keep_their_counts(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        np.testing.assert_array_equal(answer["ragged"], [[1, 1], [2, 2], [2, 2]])


def test_objects_agree_on_every_rank(answers: list[dict[str, Any]]) -> None:
    assert [(a["objects"], a["broadcast"]) for a in answers] == [([0, 10, 20], {"rank": 0})] * WORLD
    assert not any(a["has_graph"] for a in answers)


def test_alone_every_collective_is_the_identity() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert collectives.gather(rows) is rows
    assert collectives.all_reduce_sum(rows) is rows
    assert collectives.gather_objects(5) == [5]
    assert (runtime.rank(), runtime.world_size(), runtime.is_main()) == (0, 1, True)
