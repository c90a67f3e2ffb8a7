"""Steps on a GPU: the host does not wait, a broken step leaves no trace, and numbers are those of
the CPU, of whole batches, and of runs that were not stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.engine.recipes import final_state, tiny_recipe, train, write_recipe
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build import build_training
from vlkd_cli.engine.parallel import wrap_for_this_group
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.reports.csv import read_metrics

GPU = torch.device("cuda")
PLAIN = {"augment": {"name": "none"}}
# Without dropout.
TEXT = {"builder": "openclip", "config": {"layers": 1, "width": 16, "heads": 2}}
QUEUES = {
    "towers": {
        "image": {
            "builder": "openclip",
            "config": {"layers": 1, "width": 16, "heads": 2, "image_size": 32, "patch_size": 8},
            "heads": {"project": {"name": "linear", "width": 16}},
        },
        "image_key": {"follows": "image", "momentum": 0.9},
        "text": {**TEXT, "head": {"name": "linear", "width": 16, "dropout": 0.1}},
    },
    "distillers": [
        {"name": "infonce"},
        {"name": "siglip"},
        {
            "name": "moco",
            "queue_size": 24,
            "student": "image.project",
            "teacher": "image_key.project",
        },
    ],
}


def trainer_of(folder: Path, device: torch.device, **sections: Any) -> tuple[Trainer, list[Batch]]:
    """A trainer with the batches of its first epoch."""
    recipe = load_recipe(write_recipe(folder, tiny_recipe(**sections)))
    training = build_training(recipe, device, run_folder=folder, quiet=True)
    trainer = Trainer(
        training.composition,
        training.optimizer,
        training.loader,
        recipe.train,
        recipe.schedule,
        device,
        training.steps_per_epoch,
        training.total_steps,
        wrap=wrap_for_this_group(compile=recipe.train.compile),
    )
    batches = list(training.loader.batches(0))
    training.loader.close()
    return trainer, batches


def take(trainer: Trainer, batches: list[Batch]) -> list[float]:
    """Losses of steps over batches."""
    losses = []
    for batch in batches:
        losses.append(trainer.step([batch])[0].loss)
        trainer.step_count += 1
    return [float(loss) for loss in losses]


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that a step changes."""
    found = dict(trainer.composition.named_parameters()) | {
        f"buffer {name}": value for name, value in trainer.composition.distillers.named_buffers()
    }
    for number, values in enumerate(trainer.optimizer.state.values()):
        found |= {
            f"optimizer {number} {name}": value
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
    if trainer.ema is not None:
        found |= {f"average {name}": value for name, value in trainer.ema.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


@pytest.fixture
def syncs_fail() -> Iterator[None]:
    """Raise where the host waits for the GPU."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("train_keys", "optimizer"),
    [
        ({"precision": "fp32"}, {}),
        ({"precision": "bf16", "clip_grad_norm": 0.5, "ema": 0.9}, {}),
        ({"precision": "fp16", "clip_grad_norm": 0.5}, {}),
        ({"precision": "bf16", "channels_last": True}, {"name": "sgd", "momentum": 0.9}),
        ({"precision": "bf16", "chunk": 4}, {}),
        ({"precision": "bf16", "accumulate": 1}, {"name": "adam"}),
    ],
    ids=["fp32", "bf16", "fp16", "sgd", "chunk", "adam"],
)
def test_the_host_never_waits_in_a_step_that_is_not_logged(
    train_keys: dict[str, Any], optimizer: dict[str, Any], tmp_path: Path, syncs_fail: None
) -> None:
    trainer, batches = trainer_of(
        tmp_path,
        GPU,
        train=train_keys,
        optimizer={"name": "adamw", "lr": 1e-3, **optimizer},
        **QUEUES,
    )
    assert trainer.device_update is not None
    # What is created once: constants of the device, the optimizer's state, the scale of fp16.
    trainer.step([batches[0]])
    torch.cuda.set_sync_debug_mode("error")
    for batch in batches[1:4]:
        trainer.step_count += 1
        output, _ = trainer.step([batch])
    torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(output.loss)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(
    name: str, limit: float | None, tmp_path: Path
) -> None:
    keys = {"momentum": 0.9} if name == "sgd" else {}
    trainer, batches = trainer_of(
        tmp_path,
        GPU,
        train={"ema": 0.9, "clip_grad_norm": limit, "max_nonfinite_steps": 3},
        optimizer={"name": name, "lr": 1e-3, **keys},
        **QUEUES,
    )
    take(trainer, batches[:2])
    before = state(trainer)
    tower = trainer.composition.towers["image"]
    poison = next(tower.parameters()).register_hook(lambda gradient: gradient * math.nan)
    take(trainer, batches[2:3])
    poison.remove()
    for key, value in state(trainer).items():
        assert torch.equal(value, before[key]), key
    assert trainer.device_update is not None and trainer.device_update.read() == (1, 1, 1)
    take(trainer, batches[3:4])
    changed = [key for key, value in state(trainer).items() if not value.equal(before[key])]
    assert {key.split()[0] for key in changed} >= {"buffer", "optimizer", "average"}
    assert trainer.device_update.read() == (1, 0, 1)


@pytest.mark.gpu
def test_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    keys = {"towers": {"text": TEXT}, "data": PLAIN, "train": {"clip_grad_norm": 0.5}}
    losses = []
    for device in (torch.device("cpu"), GPU):
        trainer, batches = trainer_of(tmp_path, device, **keys)
        losses.append(take(trainer, batches[:4]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
def test_a_step_in_chunks_is_the_whole_step(tmp_path: Path) -> None:
    found = []
    for chunk in (None, 2):
        # AdamW would make full steps of the rounding in gradients that are 0.
        keys = {"data": PLAIN, "train": {"chunk": chunk}, "optimizer": {"name": "sgd", "lr": 0.1}}
        trainer, batches = trainer_of(tmp_path, GPU, towers={"text": TEXT}, **keys)
        found.append((take(trainer, batches[:3]), state(trainer)))
    (losses, whole), (in_chunks, other) = found
    assert in_chunks == pytest.approx(losses, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.gpu
def test_compiled_towers_train_the_same(tmp_path: Path) -> None:
    losses = []
    for compiles in (False, True):
        keys = {"towers": {"text": TEXT}, "data": PLAIN, "train": {"compile": compiles}}
        trainer, batches = trainer_of(tmp_path, GPU, **keys)
        losses.append(take(trainer, batches[:3]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
def test_cached_towers_train_as_frozen_ones_that_run(tmp_path: Path) -> None:
    losses = []
    for cached in (False, True):
        image = {
            "builder": "openclip",
            "config": {"layers": 1, "width": 16, "heads": 2, "image_size": 32, "patch_size": 8},
            "train": "head",
            "cache": cached,
            "head": {"name": "linear", "width": 16},
        }
        keys = {
            "towers": {"image": image, "text": {**TEXT, "train": "none", "cache": cached}},
            "data": PLAIN,
            "train": {"cache_dir": str(tmp_path / "cache")},
        }
        trainer, batches = trainer_of(tmp_path, GPU, **keys)
        assert all(isinstance(value, Tensor) for value in batches[0].inputs.values()) == cached
        losses.append(take(trainer, batches[:4]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.gpu
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        train={"steps": 8, "save_every_steps": 4, "ema": 0.9, "keep": 3, "clip_grad_norm": 0.5},
        **QUEUES,
    )
    whole = train(tmp_path, recipe, "whole", gpus=1)
    stopped = train(tmp_path, recipe, "stopped", gpus=1)
    saved = {torch.load(path)["step"]: path for path in (stopped / "checkpoints").glob("step*.pt")}
    saved[4].replace(stopped / "checkpoints" / "last.pt")
    train(tmp_path, recipe, "stopped", gpus=1, resume=str(stopped))
    one, other = final_state(whole), final_state(stopped)
    assert one["step"] == other["step"] == 8
    for part in ("towers", "followers", "distillers", "ema", "optimizer"):
        _assert_equal(one[part], other[part], part)


def _assert_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.gpu
def test_memory_stays_after_the_first_steps(tmp_path: Path) -> None:
    trainer, batches = trainer_of(tmp_path, GPU, train={"precision": "bf16"}, **QUEUES)
    take(trainer, batches)
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        take(trainer, batches)
    assert torch.cuda.memory_allocated() <= held + 4096


@pytest.mark.gpu
def test_a_run_on_a_gpu_counts_its_skipped_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._update

    def poisoned(self: Trainer, loss: Tensor) -> Tensor:
        if self.step_count in (2, 3):
            next(p for p in self._parameters if p.grad is not None).grad.fill_(math.nan)
        return real(self, loss)

    monkeypatch.setattr(Trainer, "_update", poisoned)
    run = train(tmp_path, tiny_recipe(train={"log_every_steps": 5, "steps": 8}), gpus=1)
    assert final_state(run)["skipped_steps"] == 2
    logged = read_metrics(run)["train/skipped_steps"]
    assert logged == [(1, 0.0), (5, 2.0), (8, 2.0)]
