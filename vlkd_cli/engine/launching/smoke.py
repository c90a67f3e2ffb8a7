"""`vlkd recipes smoke`: whether a recipe can be trained, without its data, in a minute or two."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlkd_cli.engine.launching.launch import quieten_libraries
from vlkd_cli.errors import DataError, RecipeError, UserError, WeightsError
from vlkd_cli.recipe.checks import check_recipe
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.messages import written
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.schema import DataSpec, Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.reports.csv import read_metrics

NUM_STEPS = 2
BATCH_SIZE = 4
MAX_ACCUMULATE = 2


@dataclass(frozen=True)
class Outcome:
    """What a smoke test found.

    Args:
        text: one line for the user, e.g. "fine, 2 steps, loss 4.16".
        failed: whether the recipe is at fault, or what it needs is missing.
    """

    text: str
    failed: bool = False


def smoke_test(source: str, overrides: Sequence[str] = (), *, weights: bool = True) -> Outcome:
    """Check a recipe, then take a dry run and two training steps on rendered shapes in a temporary
    folder.

    The towers, distillers, views and optimizer are the recipe's; see `reduced` for what is not.

    Args:
        source: a recipe file or the name of a shipped recipe.
        overrides: `key=value` texts, applied first.
        weights: False: towers start from random weights where their builder can make them.
    """
    try:
        recipe = reduced(load_recipe(source, overrides), weights=weights)
    except RecipeError as error:
        return Outcome(str(error), failed=True)
    if problems := check_recipe(recipe):
        return _not_run(source, f"{written(problems[0].path)}: {problems[0].text}")
    try:
        loss = _last_loss(recipe)
    except DataError as error:
        # The data are ours, so the recipe is not at fault.
        return _not_run(source, str(error))
    except UserError as error:
        line = " ".join(str(error).splitlines()[:1])
        if weights and isinstance(error, WeightsError) and _random_towers(recipe):
            line += " Or start from random weights: --no-weights."
        return Outcome(f"{source}: {line}", failed=True)
    return Outcome(f"{source}: fine, {NUM_STEPS} steps, loss {loss:.4g}")


def _not_run(source: str, reason: str) -> Outcome:
    return Outcome(
        f"{source}: checked, but not run, since rendered shapes are too little for it: {reason}"
    )


def reduced(recipe: Recipe, *, weights: bool = True) -> Recipe:
    """The recipe on a few rendered shapes with small batches and two steps, without evaluations and
    reports.

    `train.compile` and `train.sync_batch_norm` are off: the first takes minutes, the second needs
    GPUs.
    """
    train, data = recipe.train, recipe.data
    if data is not None:
        accumulate = min(train.accumulate, MAX_ACCUMULATE)
        batch_size = min(train.batch_size, max(BATCH_SIZE, 2 * (data.per_class or 0)))
        train = train.model_copy(
            update={
                "epochs": 1,
                "steps": NUM_STEPS,
                "batch_size": batch_size,
                "accumulate": accumulate,
                "best": None,
                "log_every_steps": 1,
                "compile": False,
                "sync_batch_norm": False,
                "shard": "none",
                "tf32": False,
            }
        )
        same = ("augment", "views", "shuffle", "per_class", "distinct")
        data = DataSpec.model_validate(
            {
                **{key: getattr(data, key) for key in same},
                "reader": "shapes",
                "num_samples": NUM_STEPS * accumulate * batch_size,
                "workers": 0,
            }
        )
    towers = dict(recipe.towers)
    if not weights:
        towers |= {
            name: towers[name].model_copy(update={"pretrained": False})
            for name in _random_towers(recipe)
        }
    small = recipe.model_copy(
        update={"towers": towers, "data": data, "train": train, "evals": [], "reports": []}
    )
    replaced = ("data", "train", "evals", "reports")
    small.remember_written(
        {
            path: text
            for path, text in recipe.written().items()
            if path[0] not in replaced and (weights or path[-1] != "pretrained")
        }
    )
    return small


def _random_towers(recipe: Recipe) -> list[str]:
    """Names of the towers that can be built with random weights instead of those of a file."""
    return [
        name
        for name, tower in recipe.towers.items()
        # A sentence encoder's files hold its architecture too.
        if tower.builder not in (None, "sbert")
        and {"pretrained", "model"} & set(tower.keys)
        and "pretrained" in signature_of("builder", str(tower.builder)).key_names()
    ]


def _last_loss(recipe: Recipe) -> float:
    """The loss of the last of the steps."""
    quieten_libraries()
    from vlkd_cli.engine import worker
    from vlkd_cli.engine.launching.run_folder import RunFolder

    with tempfile.TemporaryDirectory(prefix="vlkd-smoke-") as folder:
        run = RunFolder(Path(folder) / "run").create()
        run.write_recipe(recipe)  # the end of a run reads its folder
        job = worker.Job(
            recipe=recipe_to_json(recipe),
            run=str(run.path),
            quiet=True,
            features=str(Path(folder) / "features"),
        )
        for each in (replace(job, dry_run=True), job):
            # What a run prints is not of interest here, only how it ends.
            with contextlib.redirect_stdout(io.StringIO()):
                stopped = worker.train(each)
            if stopped:
                raise KeyboardInterrupt
        return read_metrics(run.path)["train/loss"][-1][1]
