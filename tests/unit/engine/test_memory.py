"""The batch that fits is counted as the allocator counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build import build_training
from vlkd_cli.engine.memory import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    _held,
    _repeated,
    counted,
    what_fits,
)
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.schema import Recipe

LINEAR = {"name": "linear", "width": 32}
IMAGE = {
    "builder": "timm",
    "model": "vit_tiny_patch16_224",
    "image_size": 64,
    "config": {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2},
    "head": LINEAR,
}
TEXT = {
    "builder": "openclip",
    "config": {"layers": 2, "width": 64, "heads": 2, "context_length": 16},
    "head": LINEAR,
}


def prepared(folder: Path, **settings: Any) -> tuple[Trainer, Batch]:
    """A trainer that has taken a step, and a batch of eight."""
    recipe = Recipe.model_validate(
        tiny_recipe(
            towers={"image": IMAGE, "text": TEXT, "next_image": {"follows": "image"}},
            distillers=[
                {"name": "infonce"},
                {"name": "simreg", "student": "image", "teacher": "next_image"},
            ],
            data={"size_px": 64},
            train={"batch_size": 8, "ema": 0.9, **settings},
        )
    )
    cpu = torch.device("cpu")
    built = build_training(recipe, cpu, run_folder=folder, quiet=True)
    trainer = Trainer(
        built.composition,
        built.optimizer,
        built.loader,
        recipe.train,
        recipe.schedule,
        cpu,
        built.steps_per_epoch,
        built.total_steps,
    )
    batch = next(built.loader.batches(0))
    trainer.step([batch])
    return trainer, batch


def allocated(trainer: Trainer, batch: Batch, chunk: int | None) -> int:
    """The peak of a step by the allocator's own events, above what was there before."""
    trainer.composition.chunk = chunk
    trainer.step([batch])
    with torch.profiler.profile(profile_memory=True) as profile:
        trainer.step([batch])
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("samples", "chunk", "settings"),
    [
        (48, None, {}),
        (48, 8, {}),
        (48, None, {"checkpoint_activations": True}),
        (96, None, {"precision": "bf16"}),
    ],
)
def test_what_is_counted_is_what_the_allocator_counts(
    tmp_path: Path, samples: int, chunk: int | None, settings: dict[str, Any]
) -> None:
    trainer, batch = prepared(tmp_path, **settings)
    used = counted(trainer, batch)(samples, chunk) - _held(trainer)
    real = allocated(trainer, _repeated(batch, samples), chunk)
    assert used == pytest.approx(real, rel=0.1)


def test_a_trained_weight_takes_the_bytes_that_the_page_on_scaling_names(tmp_path: Path) -> None:
    trainer, _ = prepared(tmp_path)
    composition = trainer.composition
    weights = sum(each.numel() for each in composition.parameters() if each.requires_grad)
    followers = sum(num_bytes(each.state_dict()) for each in composition.followers.values())
    gradients = 4 * weights
    assert _held(trainer) - followers + gradients == pytest.approx(20 * weights, rel=0.02)
    saved = trainer.checkpoint(recipe="{}", evaluated=True, best=None, waited=0, files={})
    parts = [num_bytes(each) for each in (saved.towers, saved.distillers, saved.optimizer)]
    assert sum(parts) == pytest.approx(12 * weights, rel=0.02)
    assert num_bytes(saved.ema) == 4 * weights


def num_bytes(tree: Any) -> int:
    """Of all tensors in nested dicts."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    return sum(map(num_bytes, tree.values())) if isinstance(tree, dict) else 0


def test_the_largest_batch_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    trainer, batch = prepared(tmp_path)
    limit = CONTEXT_BYTES + (120 << 20)
    whole, chunked = what_fits(trainer, batch, limit)
    used = counted(trainer, batch)
    assert whole.chunk is None and whole.num_bytes <= limit
    assert int(used(whole.batch_size, None) * FRAGMENTATION) + CONTEXT_BYTES == whole.num_bytes
    assert used(int(1.2 * whole.batch_size), None) * FRAGMENTATION + CONTEXT_BYTES > limit
    assert chunked.chunk == whole.batch_size // 4
    assert chunked.batch_size > 2 * whole.batch_size
    assert trainer.composition.chunk is None
    assert what_fits(trainer, batch, CONTEXT_BYTES) == []


def test_a_dry_run_prints_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, tiny_recipe(), dry_run=True, memory="1GiB")
    message = capsys.readouterr().out
    assert "Largest that fits into a GPU of 1 GiB (counted)" in message
    assert "train.batch_size" in message and "train.chunk" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"memory": "24GiB"}, "--memory has no effect without --dry-run"),
        ({"memory": "24GiB", "dry_run": True, "cpu_workers": 2}, "the batch of one process"),
        ({"memory": "much", "dry_run": True}, "--memory much: not a size of memory"),
    ],
)
def test_a_memory_without_effect_is_one_line(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        train(tmp_path, tiny_recipe(), **options)
