"""What the TARGET of a command names: a run, a checkpoint, an exported folder, a recipe or a model
by name; and the towers that it contains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.builders.on_disk import towers_on_disk
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.checkpoint import Checkpoint, Source
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.launching.start_evaluation import find_target
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.load import TRUST_OPTION, parse_recipe
from vlkd_cli.recipe.messages import report
from vlkd_cli.recipe.named_models import named_models, untrained_sections_of
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.trust import check_foreign_overrides
from vlkd_cli.remote_runs import local_run
from vlkd_cli.towers.exported import exported_folders, load_exported, sections_of_whole
from vlkd_cli.towers.tower import Tower


class Target(NamedTuple):
    """The towers of a target, on the CPU in eval mode.

    Args:
        recipe: what describes them.
        towers: by name.
        source: the checkpoint that their weights are from; None where nothing was trained.
        folder: of the run; None where there is none.
        described: the target in a line, with file and step of a checkpoint.
    """

    recipe: Recipe
    towers: Mapping[str, Tower]
    source: Source | None
    folder: Path | None
    described: str

    def tower(self, name: str) -> Tower:
        """A tower by its name in the recipe.

        Raises:
            UserError: there is no such tower.
        """
        if name not in self.towers:
            raise UserError(
                f"{self.described} has no tower '{name}'.{did_you_mean(name, self.towers)} Towers:"
                f" {', '.join(self.towers)}."
            )
        return self.towers[name]


def open_target(
    target: str | None,
    overrides: Sequence[str] = (),
    *,
    runs: Path = Path("runs"),
    trust: bool = False,
    foreign: Path | None = None,
) -> Target:
    """The towers of a target.

    Args:
        target: see `api.load`; None: the newest run.
        overrides: changes of the recipe, as `--set` has them.
        foreign: the file that target and overrides are out of, where they are not the user's own
            words; they may then name components of the catalogue only, unless `trust`.

    Raises:
        UserError: there is no such target, or it cannot be loaded.
    """
    if foreign is not None and not trust:
        if problems := check_foreign_overrides(overrides, TRUST_OPTION):
            raise RecipeError(report({}, problems, str(foreign)))
    target = None if target is None else local_run(target)
    exported = {} if target is None else _exported(Path(target))
    if exported:
        assert target is not None
        return _open_exported(target, exported, overrides, trust)
    if target is not None and (model := _sections(target, runs)) is not None:
        recipe = parse_recipe(json.dumps({"towers": model}), target, overrides)
        folder, checkpoint = None, None
    else:
        recipe, run, path = find_target(target, overrides, runs, trust, foreign=foreign is not None)
        folder = None if path is None else run.path
        checkpoint = None if path is None else Checkpoint.load(path)
    towers = load_towers(recipe, folder, checkpoint)
    for tower in towers.values():
        tower.eval()
    if checkpoint is not None:
        return Target(recipe, towers, checkpoint.source, folder, str(checkpoint.source))
    sources = [f"{tower.name}: {tower.source}" for tower in towers.values() if tower.source]
    described = f"{target or 'towers of --set'}, not trained here"
    return Target(recipe, towers, None, folder, "; ".join([described, *sources]))


def _exported(path: Path) -> dict[str, Path]:
    is_run = (path / "recipe.yaml").is_file()
    return exported_folders(path) if path.is_dir() and not is_run else {}


def _open_exported(
    target: str, folders: Mapping[str, Path], overrides: Sequence[str], trust: bool
) -> Target:
    if overrides:
        raise UserError(
            f"--set has no effect on {target}, which was exported. Set keys of its run instead."
        )
    towers = {
        tower.name: tower.eval()
        for folder in folders.values()
        for tower in [load_exported(folder, trust=trust, cache_dir=cache_folder())]
    }
    recipe = Recipe.model_validate({"towers": {name: {"train": "none"} for name in towers}})
    return Target(recipe, towers, None, None, f"{target}, as it was exported")


def _sections(target: str, runs: Path) -> dict[str, dict[str, object]] | None:
    """The frozen towers of a model by name, or in a folder of its library; None where a target is
    not one."""
    builder, colon, rest = target.partition(":")
    path = Path(target)
    if path.is_dir() and not (path / "recipe.yaml").is_file():
        whole = {str(word): own for word, own in sections_of_whole(path).items()}
        return whole or None
    if path.exists() or path.suffix in (".yaml", ".yml", ".pt"):
        return None
    if colon and (not rest or len(builder) == 1):
        return None
    if not colon and (target not in named_models() or (runs / target).exists()):
        return None
    return towers_on_disk(untrained_sections_of(target))
