"""Gradients of pieces are added up while they are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.composition.chunks import encode_in_chunks
from vlkd_cli.composition.gradient_sums import GradientSums

SIDE, DEPTH = 256, 8


def test_the_gradients_of_all_pieces_take_the_memory_of_one_set_and_one_weight() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(DEPTH)))
    rows = torch.rand(4, SIDE)
    reads: Any = None
    for _ in range(2):  # the first step shows what a pass reads
        outputs, reads = encode_in_chunks(
            lambda rows, _: {"head": network(rows)}, rows, None, size=1, learns=True, reads=reads
        )()
    loss = outputs["head"].square().sum()
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    one = 4 * SIDE * SIDE
    assert (DEPTH + 1) * one <= peak < (DEPTH + 1.5) * one


class Tied(nn.Module):
    """Reads one weight twice, and adds another that has the shape of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3, dtype=torch.float64))
        self.added = nn.Parameter(torch.ones(1, 3, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows @ self.weight).tanh() @ self.weight + self.added


def passes(network: Tied, reads: list[Any], *, shares: bool) -> list[Tensor]:
    """Outputs of two passes over three rows each, in pieces of one."""
    rows = torch.arange(18, dtype=torch.float64).reshape(2, 3, 3) / 18
    sums = GradientSums(network.parameters()) if shares else None
    begun = [
        encode_in_chunks(
            lambda rows, _: {"head": network(rows)},
            rows[place],
            None,
            size=1,
            learns=True,
            reads=reads[place],
            sums=sums,
        )
        for place in (0, 1)
    ]
    outputs = []
    for place, finish in enumerate(begun):
        found, reads[place] = finish()
        outputs.append(found["head"])
    return outputs


def test_weights_that_a_piece_reads_twice_or_passes_on_have_the_gradient_of_a_whole_step() -> None:
    network = Tied()
    whole = network(torch.arange(18, dtype=torch.float64).reshape(6, 3) / 18)
    expected = torch.autograd.grad(whole.cos().sum(), list(network.parameters()))
    reads: list[Any] = [None, None]
    for shares in (False, False, True):
        loss = torch.cat(passes(network, reads, shares=shares)).cos().sum()
        for _ in range(2):  # a retained graph gives the same gradients again
            found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_gradients_are_added_to_those_that_a_weight_has_and_its_hooks_see_the_sum_once() -> None:
    network, reads = Tied(), [None, None]
    passes(network, reads, shares=False)
    seen: list[Tensor] = []
    network.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    for _ in range(2):
        torch.cat(passes(network, reads, shares=True)).sum().backward()
    assert len(seen) == 2
    assert torch.equal(network.weight.grad, seen[0] + seen[1])  # type: ignore[arg-type]
    assert network.added.grad.tolist() == [[12.0] * 3]  # type: ignore[union-attr]
