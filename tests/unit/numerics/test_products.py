from __future__ import annotations

import pytest
import torch

from vlkd_cli.numerics import products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_product_is_further_from_the_exact_one_than_its_bound(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 300, generator=generator) + 1
    rows = torch.randn(500, 300, generator=generator) + 1
    left, right = products.rounded(queries, dtype), products.rounded(rows, dtype)
    found = (left.rows @ right.rows.T).double()
    difference = (found - queries.double() @ rows.double().T).abs()
    bound = products.product_error(left, right)[:, None]
    bound = bound + found.abs() * products.result_rounding(dtype)
    assert bool((difference <= bound).all())
    assert difference.max() > 0.002 * bound.max()  # it is not just large


def test_tf32_values_have_11_significant_bits_and_are_the_nearest() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 1000
    found = products.to_tf32(values)
    assert not bool((found.view(torch.int32) & 0x1FFF).any())
    step = 2.0 ** (values.abs().log2().floor() - 10)
    assert bool(((found - values).abs() <= step / 2).all())
    sixteen = values.bfloat16().float()
    assert torch.equal(products.to_tf32(sixteen), sixteen)


@pytest.mark.parametrize(("bf16", "expected"), [(0.9, torch.float32), (0.5, torch.bfloat16)])
def test_bfloat16_is_taken_only_where_it_was_measured_to_be_faster(
    bf16: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16}
    monkeypatch.setattr(products, "_seconds", seconds.__getitem__)
    products.fast_dtype.cache_clear()
    try:
        assert products.fast_dtype() == expected
    finally:
        products.fast_dtype.cache_clear()
