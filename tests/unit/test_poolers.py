from __future__ import annotations

import pytest
import torch

from vlkd_cli import catalog
from vlkd_cli.errors import RecipeError
from vlkd_cli.poolers import (
    AttentionPooler,
    ClassMeanPooler,
    CLSPooler,
    EOTPooler,
    GeMPooler,
    LastPooler,
    MaxPooler,
    MeanPooler,
)

TOKENS = torch.tensor(
    [[[1.0, 2.0], [3.0, -4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]]
)
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_each_simple_pooler_gives_the_hand_computed_feature() -> None:
    eot = torch.tensor([1, 2])
    assert CLSPooler(2)(TOKENS, MASK).tolist() == [[1, 2], [5, 6]]
    assert MeanPooler(2)(TOKENS, MASK).tolist() == [[2, -1], [7, 8]]
    assert MaxPooler(2)(TOKENS, MASK).tolist() == [[3, 2], [9, 10]]
    assert LastPooler(2)(TOKENS, MASK).tolist() == [[3, -4], [9, 10]]
    assert EOTPooler(2)(TOKENS, MASK, eot).tolist() == [[3, -4], [9, 10]]


def test_cls_is_the_first_real_token_with_padding_on_the_left() -> None:
    assert CLSPooler(2)(TOKENS, torch.tensor([[False, True, True], [True, True, True]]))[
        0
    ].tolist() == [3, -4]


OF_TEXTS = [
    name
    for name in catalog.names("pooler")
    if not catalog.load("pooler", name).takes_prefix  # pictures have no padding
]


@pytest.mark.parametrize("name", OF_TEXTS)
def test_padding_never_matters(name: str) -> None:
    torch.manual_seed(0)
    pooler = catalog.load("pooler", name)(8)
    tokens, mask = (
        torch.randn(2, 5, 8),
        torch.tensor([[True] * 3 + [False] * 2, [True] * 4 + [False]]),
    )
    changed = tokens.masked_fill(~mask.unsqueeze(-1), 1e20)
    eot = mask.sum(1) - 1
    torch.testing.assert_close(pooler(tokens, mask, eot), pooler(changed, mask, eot))
    torch.testing.assert_close(
        pooler(tokens[:1, :3], mask[:1, :3], eot[:1]), pooler(tokens[:1], mask[:1], eot[:1])
    )


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_row_without_real_tokens_gives_numbers(name: str) -> None:
    torch.manual_seed(0)
    pooler = catalog.load("pooler", name)(8)
    pooled = pooler(
        torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
    )
    assert pooled.shape == (2, 8)
    assert pooled.isfinite().all()


def test_gem_is_the_mean_at_power_one_and_nears_the_maximum_at_a_high_power() -> None:
    tokens = TOKENS.abs()
    torch.testing.assert_close(GeMPooler(2, p=1.0)(tokens, MASK), MeanPooler(2)(tokens, MASK))
    torch.testing.assert_close(
        GeMPooler(2, p=60.0)(tokens / 10, MASK),
        MaxPooler(2)(tokens / 10, MASK),
        rtol=0.02,
        atol=0.01,
    )


def test_gem_learns_its_power_by_default() -> None:
    pooler = GeMPooler(2)
    pooler(TOKENS, MASK).sum().backward()
    assert pooler.p.grad is not None and pooler.p.grad.abs() > 0
    assert not GeMPooler(2, learnable=False).p.requires_grad


def test_attention_trains_every_parameter() -> None:
    torch.manual_seed(0)
    pooler = AttentionPooler(8, heads=2)
    pooler(torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.bool)).pow(2).sum().backward()
    assert [name for name, parameter in pooler.named_parameters() if parameter.grad is None] == []


def test_attention_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide the token width 8"):
        AttentionPooler(8, heads=3)


def test_class_token_and_mean_of_the_patches_leave_out_registers() -> None:
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    pooler = ClassMeanPooler(2)
    assert pooler.width == 4
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert pooler(tokens, mask, prefix=3).tolist() == [[0, 1, 8, 9]]
    with pytest.raises(RecipeError, match="pooler 'cls_mean' needs a class token"):
        pooler(tokens, mask)
