"""Tiles of the similarity matrix against the whole matrix."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from vlkd_cli.distillers import blocked_contrast, tiles
from vlkd_cli.distillers.blocked_contrast import blocked_infonce, blocked_siglip
from vlkd_cli.distillers.infonce import InfoNCE
from vlkd_cli.distillers.siglip import SigLIP
from vlkd_cli.recipe.types import Progress


def dense_infonce(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits, matches = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T, torch.arange(len(x))
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2


def pair(
    rows: int, spread: float, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(rows, 16, generator=generator, dtype=torch.float64)
    second = first + spread * torch.randn(rows, 16, generator=generator, dtype=torch.float64)
    return first.to(dtype).requires_grad_(), second.to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("stored", "most"),
    [(0, 0), (0, 10**9), (10**9, 0)],
    ids=["none stored", "an eighth stored", "all stored"],
)
@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0, 1000.0])
def test_tiles_equal_the_whole_matrix(
    stored: int, most: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {
        "STORED_ENTRIES": stored,
        "MOST_STORED_ENTRIES": most,
        "TILE_ROWS": 5,
        "TILE_COLUMNS": 7,
        "SMALL_ENTRIES": 0,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(tiles, name, value)
    x, y = pair(23, 2.0)
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    found = blocked_infonce(x, y, factor)
    wanted = dense_infonce(x, y, factor)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, y, factor)),
        torch.autograd.grad(wanted, (x, y, factor)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_logits_beyond_one_shared_exponential_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SMALL_ENTRIES", 0)
    x, y = pair(40, 0.5, torch.float32)
    # One opposed pair puts a row and a column some 200 nats below the tile's highest entry.
    with torch.no_grad():
        y[3] = -x[3]
    factor = torch.tensor(100.0)
    found, wanted = (
        blocked_infonce(x, y, factor),
        dense_infonce(x.double(), y.double(), factor.double()),
    )
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(found, x), torch.autograd.grad(wanted, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_backward_twice_over_one_graph_gives_the_same_gradient() -> None:
    x, y = pair(12, 1.0)
    loss = blocked_infonce(x, y, torch.tensor(10.0, dtype=torch.float64))
    first = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x), first)


def test_siglip_tiles_equal_the_sum_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", 5)
    x, y = pair(13, 1.0)
    scale, bias = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, -10.0)
    )
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T + bias
    wanted = -F.logsigmoid((2 * torch.eye(13, dtype=torch.float64) - 1) * logits).sum() / 13
    found = blocked_siglip(x, y, scale, bias)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    inputs = (x, y, scale, bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_batch_of_one_has_no_loss_and_no_gradient() -> None:
    x, y = pair(1, 0.3, torch.float32)
    loss = InfoNCE()(x, y)
    loss.backward()
    assert loss.item() == 0 and x.grad is not None and x.grad.abs().max() < 1e-6


def test_only_the_side_that_learns_gets_a_gradient() -> None:
    x, y = pair(6, 1.0)
    wanted = torch.autograd.grad(dense_infonce(x, y, torch.tensor(5.0)), y)[0]
    found = torch.autograd.grad(
        blocked_infonce(x.detach(), y, torch.tensor(5.0, dtype=torch.float64)), y
    )[0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_scale_is_clamped_in_commit_only() -> None:
    loss = InfoNCE(logit_scale=99.0)
    with torch.no_grad():
        loss.log_scale.add_(1.0)
    loss(*pair(4, 1.0, torch.float32))
    assert loss.log_scale.exp().item() > 200
    loss.commit(Progress())
    assert loss.log_scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize(
    ("gib", "side"), [(139, 8192), (79, 8192), (23, 4096), (8, 2048), (1, 1024)]
)
def test_tiles_on_a_gpu_are_as_large_as_its_memory_allows(
    gib: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30)
    )
    assert tiles.tile_size(torch.device("cuda")) == (side, side)
    assert tiles.tile_size(torch.device("cpu")) == (1024, 1024)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [0, 10**9])
def test_16_bit_features_give_the_loss_of_the_same_numbers_in_float32(
    dtype: torch.dtype, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows multiplied before they are scaled, as on a GPU, where the products are in TF32."""
    monkeypatch.setattr(tiles, "multiplies_tf32", lambda _: True)
    for name, value in {"STORED_ENTRIES": stored, "TILE_ROWS": 5, "TILE_COLUMNS": 7}.items():
        monkeypatch.setattr(tiles, name, value)
    x, y = pair(23, 2.0, dtype)
    exact = [each.detach().double().requires_grad_() for each in (x, y)]
    for distiller in (InfoNCE(logit_scale=14.0), SigLIP()):
        found = distiller(x, y)
        wanted = distiller.double()(*exact)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
        for ours, theirs in zip(
            torch.autograd.grad(found, (x, y)), torch.autograd.grad(wanted, exact), strict=True
        ):
            assert ours.dtype == dtype
            # Half a unit in the last place, of the largest entry where fp16 has no smaller numbers.
            step = torch.finfo(dtype).eps
            torch.testing.assert_close(ours.double(), theirs, rtol=0.51 * step, atol=1e-6)


def test_what_a_gpu_computes_of_a_tile_is_what_a_cpu_computes() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 30 * torch.randn(40, 60, generator=generator)
    exact, scratch = values.double(), tiles.Scratch()
    rows, columns = blocked_contrast._lse_on_device(values, scratch)
    torch.testing.assert_close(rows, exact.logsumexp(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(columns, exact.logsumexp(0), rtol=0, atol=1e-6)
    # Log-sum-exps over other tiles too, which are higher.
    rows, columns = rows + 1.0, columns + 2.0
    wanted = (exact - rows[:, None]).exp() + (exact - columns).exp()
    found = blocked_contrast._softmax_on_device(values, rows, columns, scratch)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-12)


def test_a_large_softplus_is_exact_on_every_device() -> None:
    logits = torch.tensor([-80.0, -30.0, 0.0, 25.0, 59.0, 61.0, 95.0])
    wanted = torch.log1p(logits.double().exp())
    for found in (F.softplus(logits, threshold=blocked_contrast.SAFE_NATS), -F.logsigmoid(-logits)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
