"""Losses and search on a GPU at sizes where tiles and precision matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contracts.test_chunks import CHUNK, batch_of, composed
from tests.unit.engine.recipes import tiny_recipe, train
from tests.unit.towers.test_frozen import tower_of
from vlkd_cli.composition import chunks
from vlkd_cli.composition.gradient_sums import GradientSums
from vlkd_cli.distillers.infonce import InfoNCE
from vlkd_cli.distillers.siglip import SigLIP
from vlkd_cli.evaluation.metrics.ranks import pair_ranks
from vlkd_cli.numerics.kmeans import kmeans
from vlkd_cli.numerics.topk import top_k
from vlkd_cli.recipe.types import Progress

GPU = torch.device("cuda")
ROWS, WIDTH = 32_768, 512
SOME = 512


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator(GPU).manual_seed(0)
    image, noise = (torch.randn(ROWS, WIDTH, device=GPU, generator=generator) for _ in range(2))
    return image.requires_grad_(), (image.detach() + 4.0 * noise).requires_grad_()


def lse(rows: Tensor, columns: Tensor) -> Tensor:
    """Of each row's products, in float64, some rows at a time."""
    return torch.cat([(block @ columns.T).logsumexp(1) for block in rows.split(1024)])


@pytest.mark.gpu
def test_infonce_of_32768_pairs_is_that_of_float64_in_a_fraction_of_its_memory() -> None:
    image, text = pair()
    loss = InfoNCE(logit_scale=30.0).to(GPU)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = loss(image, text)
    found.backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < ROWS**2 * 4 / 2, f"{peak / 2**30:.2f} GiB; one matrix takes 4"
    x, y = (F.normalize(each.detach().double(), dim=1) for each in (image, text))
    scaled = 30.0 * x
    row_lse, column_lse = lse(scaled, y), lse(y, scaled)
    wanted = ((row_lse + column_lse) / 2 - (scaled * y).sum(1)).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    logits = scaled[:SOME] @ y.T
    slopes = (logits - row_lse[:SOME, None]).exp() + (logits - column_lse).exp()
    slopes[:, :SOME].diagonal().sub_(2)
    of_unit = 30.0 * (slopes @ y) / (2 * ROWS)
    _check_gradient(image, x, of_unit)


@pytest.mark.gpu
def test_siglip_of_32768_pairs_is_that_of_float64() -> None:
    image, text = pair()
    found = SigLIP(logit_scale=10.0).to(GPU)(image, text)
    found.backward()
    x, y = (F.normalize(each.detach().double(), dim=1) for each in (image, text))
    total = torch.zeros((), dtype=torch.float64, device=GPU)
    for block in x.split(1024):
        total += F.softplus(10.0 * block @ y.T - 10.0).sum()
    wanted = (total - (10.0 * (x * y).sum(1) - 10.0).sum()) / ROWS
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    slopes = (10.0 * x[:SOME] @ y.T - 10.0).sigmoid()
    slopes[:, :SOME].diagonal().sub_(1)
    _check_gradient(image, x, 10.0 * (slopes @ y) / ROWS)


def _check_gradient(features: Tensor, unit: Tensor, of_unit: Tensor) -> None:
    """The gradient of some rows, from that to the rows of length 1."""
    lengths = features.detach()[:SOME].double().norm(dim=1, keepdim=True)
    some = unit[:SOME]
    wanted = (of_unit - some * (some * of_unit).sum(1, keepdim=True)) / lengths
    assert features.grad is not None
    error = (features.grad[:SOME].double() - wanted).norm() / wanted.norm()
    assert error < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [InfoNCE(logit_scale=30.0), SigLIP()], ids=["infonce", "siglip"])
def test_16_bit_features_give_the_loss_of_the_same_numbers_in_float32(
    dtype: torch.dtype, loss: InfoNCE | SigLIP
) -> None:
    loss = loss.to(GPU)
    sides = [each.detach()[:9_000].to(dtype).requires_grad_() for each in pair()]
    exact = [each.detach().float().requires_grad_() for each in sides]
    before = torch.get_float32_matmul_precision()
    found, wanted = loss(*sides), loss(*exact)
    for each in (found, wanted):
        (1024 * each).backward()  # as a scaler does, for the small gradients of fp16
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.get_float32_matmul_precision() == before
    for ours, theirs in zip(sides, exact, strict=True):
        assert ours.grad is not None and ours.grad.dtype == dtype and theirs.grad is not None
        error = (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.gpu
def test_chunks_with_dropout_equal_those_with_stored_activations(monkeypatch) -> None:
    def gradients() -> list[Tensor]:
        composition = composed("infonce", CHUNK).float().to(GPU)
        composition.tower("text").head = torch.nn.Dropout(0.5)  # type: ignore[union-attr]
        composition.train()
        found = []
        for step in range(2):
            composition.zero_grad()
            torch.manual_seed(step)
            batch = batch_of(composition, step).to(GPU)
            batch = batch.each(lambda one: one.float() if one.is_floating_point() else one)
            with torch.autocast("cuda", torch.bfloat16):
                loss = composition(batch, Progress()).loss
            loss.backward()
            found += [each.grad for each in composition.parameters() if each.grad is not None]
        return found

    recomputed = gradients()
    monkeypatch.setattr(chunks, "checkpoint", lambda run, *inputs, use_reentrant: run(*inputs))
    monkeypatch.setattr(chunks, "_again", lambda run, rows, places, *_: run(rows, places))
    monkeypatch.setattr(GradientSums, "take_from", lambda self, outputs: None)
    for one, other in zip(recomputed, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_frozen_tower_in_16_bits_gives_nearly_the_same_on_a_gpu(dtype: str) -> None:
    full, narrow = (tower_of("image", **keys).to(GPU) for keys in ({}, {"dtype": dtype}))
    images = torch.rand(3, 3, 32, 32).to(GPU)
    cosine = F.cosine_similarity(full.encode(images), narrow.encode(images))
    assert narrow.encode(images).dtype == torch.float32 and cosine.min() > 0.999


@pytest.mark.gpu
def test_a_dry_run_measures_what_fits(tmp_path: Path, capsys) -> None:
    train(tmp_path, tiny_recipe(), dry_run=True, memory="1GiB", gpus=1)
    message = capsys.readouterr().out
    assert "Largest that fits into a GPU of 1 GiB (measured)" in message


@pytest.mark.gpu
def test_a_step_in_tf32_is_close_to_one_in_float32(tmp_path: Path) -> None:
    from vlkd_cli.reports.csv import read_metrics

    losses = []
    for tf32 in (False, True):
        settings = {"tf32": tf32, "steps": 2}
        run = train(tmp_path, tiny_recipe(train=settings), str(tf32), gpus=1)
        losses.append([value for _, value in read_metrics(run)["train/loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.gpu
def test_the_nearest_rows_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, queries = (
        F.normalize(torch.randn(count, 64, generator=generator), dim=1) for count in (5_000, 300)
    )
    rows[100] = rows[7]  # a tie
    scores, keys = top_k(queries, rows, 20)
    found_scores, found_keys = top_k(queries.to(GPU), rows.to(GPU), 20)
    assert torch.equal(found_keys.cpu(), keys)
    torch.testing.assert_close(found_scores.cpu(), scores, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_ranks_of_pairs_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.randint(-2, 3, (count, 8), generator=generator).float() for count in (600, 1800)
    )
    counts = torch.full((600,), 3)
    wanted = pair_ranks(images, texts, counts)
    found = pair_ranks(images.to(GPU), texts.to(GPU), counts)
    assert torch.equal(found.of_texts, wanted.of_texts)
    assert torch.equal(found.of_images, wanted.of_images)


@pytest.mark.gpu
def test_clusters_on_the_gpu_are_as_good_as_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(20, 32, generator=generator)
    rows = centers[torch.arange(4_000) % 20] + 0.1 * torch.randn(4_000, 32, generator=generator)
    found = [kmeans(rows.to(device), 20, seed=0) for device in ("cpu", "cuda")]
    errors = [
        float((rows - each.centroids.cpu()[each.labels.cpu()]).square().sum()) for each in found
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.gpu
def test_suites_give_the_numbers_of_the_cpu(tmp_path: Path) -> None:
    from vlkd_cli.reports.csv import read_metrics

    data: dict[str, Any] = {"reader": "shapes", "num_samples": 64, "size_px": 32, "seed": 1}
    # Rates of 1e-30 leave the weights alone.
    recipe = tiny_recipe(
        train={"steps": 1},
        optimizer={"lr": 1e-30},
        evals=[
            {"suite": "retrieval", "data": data},
            {"suite": "knn", "data": data, "train_data": {**data, "seed": 2}, "k": [5]},
        ],
    )
    runs = [
        train(tmp_path, recipe, name, **place)
        for name, place in (("cpu", {"cpu_workers": 1}), ("gpu", {"gpus": 1}))
    ]
    cpu, gpu = (
        {
            name: values[-1][1]
            for name, values in read_metrics(run).items()
            if not name.startswith("train/")
        }
        for run in runs
    )
    assert cpu.keys() == gpu.keys() and len(cpu) >= 3
    for name, value in cpu.items():
        assert gpu[name] == pytest.approx(value, abs=0.02, rel=0.02), name
