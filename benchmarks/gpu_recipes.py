"""A training step of each shipped recipe that asks for GPUs, with the networks of the recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from gpu_lightly import has_lightly, lightly_step
from gpu_table import Table, measure

from vlkd_cli.composition.episodes import is_episode_due, start_episode
from vlkd_cli.engine.build import build_training
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.load import load_recipe, parse_recipe
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.snapshot import recipe_to_yaml
from vlkd_cli.recipe.types import Progress

DECODED, SAMPLES = 16, 64
SSL_BATCH = 64
PAIRS = (
    "clip_from_scratch",
    "clip_from_pretrained",
    "lit_mobilenet",
    "siglip",
    "distill/clip_to_smaller_clip",
    "distill/ensemble_of_clips",
    "distill/protoclip",
    "distill/text_teaches_compress",
    "distill/text_teaches_dino",
    "distill/text_teaches_protocpc",
    "distill/text_teaches_rkd",
    "distill/text_teaches_seed",
    "distill/text_teaches_simreg",
)
"""Recipes of image-text pairs whose size needs GPUs."""


def ssl(table: Table, tiny: bool) -> None:
    """Steps of 64 images in bfloat16, next to lightly's where it has the method."""
    batch_size = 4 if tiny else SSL_BATCH
    if not has_lightly():
        table.add("ssl", "lightly", note="not installed: see --lightly")
    for name in (name for name in shipped_recipes() if name.startswith("ssl/")):
        recipe = yaml.safe_load(recipe_to_yaml(load_recipe(name)))
        if tiny and name == "ssl/simclr":
            recipe["towers"]["image"] |= {"model": "resnet18", "image_size": 32}
        if not tiny or name == "ssl/simclr":
            _measure(table, name, recipe, batch_size, tiny)
        if has_lightly():
            lightly_step(table, name, _case(name, batch_size), batch_size, tiny)


def recipes(table: Table, tiny: bool) -> None:
    """Steps of as many pairs as the recipe gives to each of its processes, in bfloat16. Weights
    are random; the sentence encoder is one of MiniLM's size."""
    for name in PAIRS[-1:] if tiny else PAIRS:
        recipe = yaml.safe_load(recipe_to_yaml(load_recipe(name)))
        for key, tower in recipe["towers"].items():
            if tower["builder"] == "sbert":
                recipe["towers"][key] = {
                    "builder": "huggingface",
                    "config": {"layers": 6, "width": 384, "heads": 12},
                    "tokenizer": "trained",
                    "train": "none",
                }
        batch_size = 4 if tiny else recipe["train"]["batch_size"]
        _measure(table, name, recipe, batch_size, tiny)


def _case(name: str, batch_size: int) -> str:
    return f"{name}, {batch_size} images"


def _measure(table: Table, name: str, recipe: dict[str, Any], batch_size: int, tiny: bool) -> None:
    case = _case(name, batch_size)
    with table.case(case, "vlkd"), tempfile.TemporaryDirectory() as folder:
        _on_rendered_shapes(recipe, Path(folder), tiny)
        _one(table, case, recipe, batch_size, Path(folder), tiny)


def _one(
    table: Table, case: str, recipe: dict[str, Any], batch_size: int, folder: Path, tiny: bool
) -> None:
    """Time steps of `batch_size` samples: rendered and augmented ones, several times each."""
    parsed = parse_recipe(yaml.safe_dump(recipe), "recipe.yaml")
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
    start = Progress(0, 1, 1)
    if is_episode_due(training.composition, start):
        batches = (batch.to(table.device) for batch in training.episode_loader.batches(0))
        start_episode(training.composition, batches, start)
    decoded = next(training.loader.batches(0))
    copies = -(-batch_size // DECODED)
    batch = decoded.each(
        lambda tensor: tensor.repeat(copies, *[1] * (tensor.ndim - 1))[:batch_size]
    )
    batch = batch.to(table.device)

    def step() -> None:
        trainer.step([batch])
        trainer.step_count += 1

    timing = measure(step, table.device, warm_up=1 if tiny else 3, calls=1 if tiny else 3)
    training.loader.close()
    table.add(case, "vlkd", timing, rate=batch_size / timing.seconds, unit="images/s")


def _on_rendered_shapes(recipe: dict[str, Any], folder: Path, tiny: bool) -> None:
    """Replace the recipe's data, and weights that would be downloaded."""
    for tower in recipe["towers"].values():
        if tower.get("pretrained"):
            tower["pretrained"] = False
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
        if distiller["name"] == "protoclip":
            distiller["num_prototypes"] = 16
    recipe["train"] |= {
        "batch_size": DECODED,
        "precision": "bf16",
        "sync_batch_norm": False,
        "cache_dir": str(folder / "cache"),
    }
    recipe["evals"], recipe["reports"] = [], ["csv"]
