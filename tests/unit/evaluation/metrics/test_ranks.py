from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd_cli.evaluation.metrics import ranks
from vlkd_cli.evaluation.metrics.ranks import (
    chance_mean_rank,
    chance_median_rank,
    chance_recall,
    pair_ranks,
)

COUNTS = torch.tensor([1, 2, 3, 3] * 10)


@pytest.fixture(params=["CPU", "device"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, and what a CPU runs, both on the CPU."""
    if request.param == "device":
        monkeypatch.setattr(ranks, "_OnCPU", ranks._OnDevice)


def places(scores: torch.Tensor) -> torch.Tensor:
    """1-based place of each candidate in its row's list; the earlier of equals is ahead."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("budget_bytes", [1, 3000, 1 << 20])
def test_ranks_equal_full_sorts_with_ties_and_in_small_blocks(budget_bytes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, (40, 3), generator=generator).float()
    texts = torch.randint(-2, 3, (90, 3), generator=generator).float()
    owner = torch.repeat_interleave(torch.arange(40), COUNTS)
    scores = images @ texts.T
    of_texts = places(scores).masked_fill(owner != torch.arange(40)[:, None], 1000).amin(dim=1)
    of_images = places(scores.T).gather(1, owner[:, None])[:, 0]
    found = pair_ranks(images, texts, COUNTS, budget_bytes=budget_bytes)
    assert found.of_texts.tolist() == of_texts.tolist()
    assert found.of_images.tolist() == of_images.tolist()


@pytest.mark.usefixtures("kind")
def test_more_images_than_a_byte_counts_are_all_counted() -> None:
    images = torch.arange(600, 0, -1.0)[:, None]
    found = pair_ranks(images, torch.ones(600, 1), torch.ones(600, dtype=torch.int64))
    assert found.of_images.tolist() == list(range(1, 601))


@pytest.mark.usefixtures("kind")
def test_equal_features_are_ordered_by_position_whatever_a_product_rounds() -> None:
    row = torch.nn.functional.normalize(
        torch.randn(1, 301, generator=torch.Generator().manual_seed(0)), dim=1
    )
    ones = torch.ones(50, dtype=torch.int64)
    found = pair_ranks(row.repeat(50, 1), row.repeat(50, 1), ones, budget_bytes=7000)
    assert found.of_texts.tolist() == found.of_images.tolist() == list(range(1, 51))


@pytest.mark.usefixtures("kind")
def test_features_that_are_not_finite_rank_last() -> None:
    nothing, ones = torch.full((3, 4), torch.nan), torch.ones(3, dtype=torch.int64)
    for images, texts in ((nothing, torch.ones(3, 4)), (torch.ones(3, 4), nothing)):
        found = pair_ranks(images, texts, ones)
        assert found.of_texts.tolist() == found.of_images.tolist() == [3, 3, 3]


def test_an_image_without_a_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="each at least 1"):
        pair_ranks(torch.eye(2), torch.eye(2), torch.tensor([0, 2]))


def test_chance_is_what_random_orders_reach() -> None:
    random = np.random.default_rng(0)
    own = np.array([1, 5, 7])
    ranks = np.array(
        [[random.permutation(40)[:count].min() + 1 for count in own] for _ in range(4000)]
    )
    assert (ranks <= 5).mean() == pytest.approx(chance_recall(own, 40, 5), abs=0.01)
    assert ranks.mean() == pytest.approx(chance_mean_rank(own, 40), abs=0.15)
    assert np.median(ranks) == pytest.approx(chance_median_rank(own, 40), abs=1)
