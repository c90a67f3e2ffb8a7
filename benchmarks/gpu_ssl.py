"""A training step of each recipe of self-supervised learning, with the networks of the recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from gpu_table import Table, measure

from vlkd_cli.composition.episodes import has_episodes, start_episode
from vlkd_cli.engine.build import build_training
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.load import load_recipe, parse_recipe
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.snapshot import recipe_to_yaml
from vlkd_cli.recipe.types import Progress

BATCH, DECODED, SAMPLES = 64, 16, 64


def ssl(table: Table, tiny: bool) -> None:
    """Steps of 64 images in bfloat16: 16 rendered and augmented ones, four times."""
    names = [name for name in shipped_recipes() if name.startswith("ssl/")]
    for name in ["ssl/simclr"] if tiny else names:
        with table.case(f"{name}, {BATCH} images", "vlkd"), tempfile.TemporaryDirectory() as folder:
            _one(table, name, _recipe(name, Path(folder), tiny), Path(folder), tiny)


def _one(table: Table, name: str, recipe: dict[str, Any], folder: Path, tiny: bool) -> None:
    parsed = parse_recipe(yaml.safe_dump(recipe), f"{name}.yaml")
    training = build_training(parsed, table.device, run_folder=folder, quiet=True)
    trainer = Trainer(
        training.composition,
        training.optimizer,
        training.loader,
        parsed.train,
        parsed.schedule,
        table.device,
        training.steps_per_epoch,
        training.total_steps,
    )
    if has_episodes(training.composition):
        batches = (batch.to(table.device) for batch in training.episode_loader.batches(0))
        start_episode(training.composition, batches, Progress(0, 1, 1))
    decoded = next(training.loader.batches(0))
    copies = BATCH // DECODED
    batch = decoded.each(lambda tensor: tensor.repeat(copies, *[1] * (tensor.ndim - 1)))
    batch = batch.to(table.device)

    def step() -> None:
        trainer.step([batch])
        trainer.step_count += 1

    timing = measure(step, table.device, warm_up=1 if tiny else 3, calls=1 if tiny else 3)
    training.loader.close()
    table.add(
        f"{name}, {BATCH} images", "vlkd", timing, rate=BATCH / timing.seconds, unit="images/s"
    )


def _recipe(name: str, folder: Path, tiny: bool) -> dict[str, Any]:
    """The recipe on rendered pictures, with nothing to download."""
    recipe = yaml.safe_load(recipe_to_yaml(load_recipe(name)))
    for tower in recipe["towers"].values():
        if tower.get("pretrained"):
            tower["pretrained"] = False
        if tiny:
            tower |= {"model": "resnet18", "image_size": 32}
    kept = {key: recipe["data"][key] for key in ("augment", "views") if recipe["data"].get(key)}
    recipe["data"] = {
        "reader": "shapes",
        "num_samples": SAMPLES,
        "size_px": 32 if tiny else 224,
        "workers": 0,
        **kept,
    }
    for distiller in recipe["distillers"]:
        # A cluster needs samples, and 64 span no 256 components.
        if distiller["name"] in ("deepcluster", "odc"):
            distiller |= {"num_clusters": 16, "components": 16, "min_cluster": 1}
            if distiller["name"] == "deepcluster":
                del distiller["min_cluster"]
    recipe["train"] |= {
        "batch_size": DECODED,
        "precision": "bf16",
        "sync_batch_norm": False,
        "cache_dir": str(folder / "cache"),
    }
    recipe["evals"], recipe["reports"] = [], ["csv"]
    return recipe
