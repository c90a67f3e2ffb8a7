"""Weights divided among processes train as whole ones do."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.ranks import run_on_ranks
from tests.unit.engine.recipes import TEXT, tiny_recipe
from vlkd_cli.data.batch import Batch
from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.sharding import (
    _rows_of,
    divided_modules,
    is_divided,
    joined,
    joined_later,
    own_slice,
    whole_weights,
)
from vlkd_cli.engine.build import build_training
from vlkd_cli.engine.parallel import wrap_for_this_group
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.schema import Recipe

LINEAR = {"name": "linear", "width": 16}
IMAGE = {
    "builder": "timm",
    "model": "vit_tiny_patch16_224",
    "image_size": 32,
    # 18 wide, so that rows cannot be divided evenly by four.
    "config": {"patch_size": 8, "embed_dim": 18, "depth": 3, "num_heads": 2},
    "head": LINEAR,
}
TOWERS = {
    "image": IMAGE,
    "text": {**TEXT, "head": LINEAR},
    "next_image": {"follows": "image", "momentum": 0.5},
    "frozen_text": {**TEXT, "train": "none"},
}
DISTILLERS = [
    {"name": "infonce"},
    {"name": "seed", "student": "image", "teacher": "text", "queue_size": 16},
    {"name": "simreg", "student": "image", "teacher": "next_image"},
    {"name": "affinity", "student": ["image.backbone", "text"], "teacher": ["next_image", "text"]},
]
GLOBAL_BATCH = 16


def recipe_of(shard: str, **train: Any) -> Recipe:
    sections = tiny_recipe(
        towers={**TOWERS, "image": {**IMAGE, **train.pop("image", {})}},
        distillers=DISTILLERS[: train.pop("objectives", 3)],
        train={"shard": shard, "ema": 0.9, **train},
        data={"num_samples": 96, "augment": {"name": "none"}},
    )
    sections["train"]["batch_size"] = GLOBAL_BATCH // runtime.world_size()
    return Recipe.model_validate(sections)


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    cpu = torch.device("cpu")
    training = build_training(recipe, cpu, run_folder=folder, quiet=True)
    settings = recipe.train
    return Trainer(
        training.composition,
        training.optimizer,
        training.loader,
        settings,
        recipe.schedule,
        cpu,
        training.steps_per_epoch,
        training.total_steps,
        wrap=wrap_for_this_group(compile=settings.compile, shard=settings.shard == "towers"),
    )


def take(trainer: Trainer, steps: int) -> list[list[float]]:
    """Losses, norms and learning steps."""
    found = []
    for _ in range(steps):
        accumulate = trainer.settings.accumulate
        batches = trainer.loader.batches(0, start=trainer.step_count * accumulate)
        rows: list[Batch] = [next(batches) for _ in range(accumulate)]
        output, norm = trainer.step(rows)
        trainer.step_count += 1
        values = torch.stack([output.loss.float(), *output.terms.values()])
        torch.distributed.all_reduce(values)
        found.append([*(values / runtime.world_size()).tolist(), float(norm)])
    return found


def whole(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: (value.full_tensor() if is_divided(value) else value).float().numpy()  # type: ignore[operator]
        for name, value in state.items()
    }


CASES: dict[str, dict[str, Any]] = {
    "clipped": {"clip_grad_norm": 0.05},
    "chunks": {"chunk": 3, "accumulate": 2, "checkpoint_activations": True},
    "last": {"image": {"train": {"last": 1}}},
    "scaled": {"precision": "fp16", "objectives": 1},
}


def compare(folder: str) -> dict[str, Any]:
    """What each case gives with and without sharding."""
    found = {}
    for name, settings in CASES.items():
        for shard in ("none", "towers"):
            trainer = trainer_of(recipe_of(shard, **settings), Path(folder))
            losses = take(trainer, 6 if name == "scaled" else 3)
            assert trainer.ema is not None
            state = {**trainer.composition.state_dict(), **trainer.ema.state_dict()}
            held = sum(own_slice(one).numel() for one in trainer.composition.parameters())
            extra = [trainer.skipped_steps, trainer.scaler.get_scale()]
            found[f"{name} {shard}"] = losses, whole(state), held, extra
            if shard == "towers":
                assert len(divided_modules(trainer.composition)) == 4 + 1 + 4
                expected = whole(trainer.composition.state_dict())
                with whole_weights(trainer.composition):
                    assert not any(map(is_divided, trainer.composition.parameters()))
                    copied = copy.deepcopy(trainer.composition.towers["image"])
                    for key, value in copied.state_dict().items():
                        assert (value.float().numpy() == expected[f"towers.image.{key}"]).all()
                assert any(map(is_divided, trainer.composition.parameters()))
    return found


def losses_compiled(folder: str) -> list[list[list[float]]]:
    """Of whole and chunked steps: with whole weights, and divided with the kernels that torch's
    compiler makes."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder + "/kernels"
    recipes = [
        recipe_of(shard, objectives=1, chunk=chunk, compile=shard == "towers")
        for chunk in (None, 4)
        for shard in ("none", "towers")
    ]
    return [take(trainer_of(recipe, Path(folder)), 3) for recipe in recipes]


def num_gathers(folder: str) -> list[int]:
    """All-gathers of weights in a step of 4 samples, whole, in 2 and in 4 chunks."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    gathers, found = 0, []
    plain: Any = FSDPParamGroup.unshard

    def unshard(group: Any, *arguments: Any, **keys: Any) -> None:
        nonlocal gathers
        gathers += not group.is_unsharded and group._all_gather_result is None
        plain(group, *arguments, **keys)

    FSDPParamGroup.unshard = unshard  # type: ignore[method-assign]
    for chunk in (None, 4, 2):
        trainer = trainer_of(recipe_of("towers", chunk=chunk), Path(folder))
        take(trainer, 1)
        gathers = 0
        take(trainer, 1)
        found.append(gathers)
        assert all(map(is_divided, trainer.composition.towers["image"].encoder.parameters()))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_weights_are_gathered_once_for_all_chunks(tmp_path: Path) -> None:
    whole, *chunked = run_on_ranks(num_gathers, 2, str(tmp_path), timeout_seconds=300)[0]
    assert whole > 0 and chunked == [whole, whole]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_divided_towers_train_the_same_compiled(tmp_path: Path) -> None:
    for found in run_on_ranks(losses_compiled, 2, str(tmp_path), timeout_seconds=800):
        expected, whole, chunked_expected, chunked = map(torch.tensor, found)
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(chunked, chunked_expected, rtol=1e-5, atol=1e-5)


def test_rows_are_read_out_of_the_pieces_that_hold_them() -> None:
    rows = torch.arange(10.0).view(5, 2)
    later = joined_later([rows[:2], rows[2:4], rows[4:], rows[5:]])
    assert later.shape == (5, 2) and later.is_meta and joined(later).equal(rows)
    for start in range(6):
        for stop in range(start, 8):
            assert _rows_of(later, start, stop).equal(rows[start:stop])
    # What lies in one piece is not copied.
    assert _rows_of(later, 2, 4).data_ptr() == rows[2:].data_ptr()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranks", [2, 4])
def test_divided_weights_train_as_whole_ones(tmp_path: Path, ranks: int) -> None:
    answers = run_on_ranks(compare, ranks, str(tmp_path), timeout_seconds=600)
    for name in CASES:
        tolerance = 1e-2 if name == "scaled" else 2e-6
        for answer in answers:
            (losses, state, held, extra), (others, other_state, less, other_extra) = (
                answer[f"{name} {shard}"] for shard in ("none", "towers")
            )
            torch.testing.assert_close(
                torch.tensor(losses),
                torch.tensor(others),
                rtol=tolerance,
                atol=tolerance,
                equal_nan=True,
            )
            assert extra == other_extra
            assert state.keys() == other_state.keys()
            for key, value in state.items():
                # The gradient of a key's bias is rounding only, and AdamW makes full steps of it.
                if "qkv.bias" in key or "in_proj_bias" in key:
                    assert value.shape == other_state[key].shape
                    continue
                torch.testing.assert_close(
                    torch.tensor(value), torch.tensor(other_state[key]), rtol=1e-3, atol=2e-4
                )
            assert less < 1.2 * held / ranks + 1500
        assert len({repr(answer[f"{name} towers"][0]) for answer in answers}) == 1
