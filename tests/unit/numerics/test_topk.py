from __future__ import annotations

import pytest
import torch

from vlkd_cli.numerics.topk import TopK, top_k


def reference(
    queries: torch.Tensor, rows: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = (queries.double()[:, None] * rows.double()[None]).sum(-1).float()
    order = scores.flip(1).argsort(dim=1, descending=True, stable=True)[:, :k]
    keys = len(rows) - 1 - order
    return scores.gather(1, keys), keys


@pytest.mark.parametrize("candidates", ["fp32", "bf16"])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_top_k_equals_a_full_sort_whatever_proposes_the_candidates(candidates: str, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    queries = torch.randn(33, 24, generator=generator)
    rows = torch.randn(1000, 24, generator=generator) * torch.rand(1000, 1, generator=generator) * 3
    best = TopK(queries, k, candidates=candidates, block_rows=192)  # type: ignore[arg-type]
    for block in rows.split(301):
        best.add(block)
    scores, keys = best.result()
    expected_scores, expected_keys = reference(queries, rows, k)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(scores, expected_scores)


def test_neighbors_closer_than_bf16_can_tell_apart_keep_their_order() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.nn.functional.normalize(torch.randn(1, 384, generator=generator), dim=1)
    rows = base + 1e-4 * torch.randn(5000, 384, generator=generator)
    _, keys = top_k(base, rows, 20, candidates="bf16")
    assert torch.equal(keys, reference(base, rows, 20)[1])


def test_ties_go_to_the_larger_key_across_blocks() -> None:
    rows = torch.ones(700, 8)
    keys = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    best = TopK(torch.ones(3, 8), 5, block_rows=64)
    best.add(rows[:100], keys[:100])
    best.add(rows[100:], keys[100:])
    scores, found = best.result()
    assert found.tolist() == [[699, 698, 697, 696, 695]] * 3
    assert torch.equal(scores, torch.full((3, 5), 8.0))


def test_fewer_rows_than_k_are_all_returned_and_nothing_else() -> None:
    scores, keys = top_k(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]]), 10)
    assert keys.tolist() == [[0, 1], [0, 1]]
    assert scores.tolist() == [[1.0, 0.0], [0.0, -1.0]]


def test_no_rows_give_empty_lists() -> None:
    scores, keys = TopK(torch.eye(2), 3).result()
    assert scores.shape == keys.shape == (2, 0)


def test_cosines_tie_whatever_the_lengths_of_rows():
    rows = torch.tensor([[1.0, 2.0, 2.0], [3.0, 6.0, 6.0], [2.0, 1.0, -2.0], [0.0, 0.0, 0.0]])
    rows = torch.cat([rows, 7 * rows])
    scores, keys = top_k(rows[:1] * 0.3, rows, 8, cosine=True)
    assert keys.tolist() == [[5, 4, 1, 0, 7, 6, 3, 2]]
    assert scores.tolist() == [[1.0] * 4 + [0.0] * 4]


@pytest.mark.parametrize("candidates", ["fp32", "bf16"])
def test_cosines_are_exact_whatever_proposes_them(candidates):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 16, generator=generator) * torch.rand(3000, 1, generator=generator)
    queries = torch.randn(20, 16, generator=generator) * 100
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    every = (torch.nn.functional.normalize(queries.double(), dim=1) @ unit.T).float()
    expected = every.sort(dim=1, descending=True).values[:, :50]
    scores, keys = top_k(queries, rows, 50, candidates=candidates, cosine=True)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(every.gather(1, keys), scores, rtol=0, atol=1e-7)
