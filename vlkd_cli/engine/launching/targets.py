"""What a table measures: runs, checkpoints, recipes, exported folders, models of a builder, and
files that list them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli import catalog
from vlkd_cli.builders.on_disk import towers_on_disk
from vlkd_cli.data.files.texts import read_lines
from vlkd_cli.engine.launching.run_folder import RunFolder, latest_run
from vlkd_cli.engine.launching.start_evaluation import find_target
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.named_models import named_models, untrained_sections_of
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.remote_runs import is_url, local_run


class Target(NamedTuple):
    """A model of a table."""

    label: str
    recipe: Recipe
    folder: RunFolder
    checkpoint: Path | None = None
    exported: dict[str, Path] = {}
    """Folders of exported towers, whose heads are next to them."""


def targets_of(
    words: Sequence[str], overrides: Sequence[str], runs: Path, trust: bool
) -> list[Target]:
    """The models that are meant, each once; without words the newest run.

    Raises:
        UserError: a word is none of what a target may be.
    """
    labels = list(dict.fromkeys(_expanded(words))) or [str(latest_run(runs).path)]
    return [target_of(label, overrides, runs, trust) for label in labels]


def _expanded(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        lines = read_lines(word[1:])
        # A # inside a word is part of a name.
        listed = [re.split(r"(?:^|\s)#", line)[0].strip() for line in lines]
        if not any(listed):
            raise UserError(f"{word}: the list names no target. Write one on each line.")
        yield from (os.path.expanduser(word) for word in listed if word)


def target_of(label: str, overrides: Sequence[str], runs: Path, trust: bool) -> Target:
    """What one word means.

    Raises:
        UserError: it is none of what a target may be.
    """
    path = Path(local_run(label))
    if path.is_dir() and not (path / "recipe.yaml").is_file():
        from vlkd_cli.towers.exported import exported_folders, section_of, sections_of_whole

        exported = exported_folders(path)
        sections: dict[str, Any] = {
            name: section_of(folder, trust=trust) for name, folder in exported.items()
        } or {str(word): own for word, own in sections_of_whole(path).items()}
        if sections:
            return Target(
                label,
                _parsed(sections, label, overrides),
                RunFolder(runs / f"eval-{_file_name(label)}"),
                exported=exported,
            )
    if label in named_models() and not path.exists() and not (runs / label).exists():
        recipe = _parsed(untrained_sections_of(label), label, overrides)
        return Target(label, recipe, RunFolder(runs / f"eval-{label}"))
    builder, _, model = label.partition(":")
    if model and builder in catalog.names("builder"):
        towers = _of_builder(builder, model)
        return Target(
            label,
            _parsed(towers, label, overrides),
            RunFolder(runs / f"eval-{_file_name(label)}"),
        )
    return Target(
        label, *find_target(str(path) if is_url(label) else label, overrides, runs, trust)
    )


def _of_builder(builder: str, model: str) -> dict[str, Any]:
    """A model with the pretrained weights of the tag behind it, where there is one: a tower for
    each modality of the builder."""
    name, _, tag = model.rpartition(":") if _has_tag(model) else (model, "", "")
    section: dict[str, Any] = {"builder": builder, "model": name, "train": "none"}
    if tag:
        section["pretrained"] = tag
    modalities = attributes_of("builder", builder).get("modalities") or ("image", "text")
    return towers_on_disk({str(modality): section for modality in sorted(modalities)})


def _has_tag(model: str) -> bool:
    """`hf-hub:owner/name` is a name with a colon, not a name with a tag."""
    return ":" in model.removeprefix("hf-hub:").removeprefix("local-dir:")


def _parsed(towers: dict[str, Any], label: str, overrides: Sequence[str]) -> Recipe:
    import yaml

    return parse_recipe(yaml.safe_dump({"towers": towers}), label, overrides)


def _file_name(label: str) -> str:
    """A label as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in label)
