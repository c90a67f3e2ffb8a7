"""`vlkd export --format open_clip | hf_clip | sentence_transformers`: what two towers, or a text
tower with its head, are in one library."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from vlkd_cli.builders.backbone import Export
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.modality import is_named
from vlkd_cli.towers.export import DUAL, PAGE, ExportedTower, logit_start_of, page_of
from vlkd_cli.towers.tower import Tower

Whole = Literal["open_clip", "hf_clip", "sentence_transformers"]


def write_whole(
    format: Whole,
    towers: Mapping[str, Tower],
    checkpoint: Checkpoint,
    folder: Path,
    destination: Path,
) -> list[ExportedTower]:
    """Write a pair of towers to `folder/dual_encoder`, or each text tower to `folder/TOWER`; what
    was written is loaded and compared.

    Args:
        towers: those wanted, by name.
        destination: where the folder will be when it is done.

    Raises:
        UserError: the towers do not fit the format, or its library gives other vectors.
    """
    if format == "sentence_transformers":
        from vlkd_cli.towers.whole.sentence import write_sentence_transformer

        texts = {name: tower for name, tower in towers.items() if is_named(tower.modality)}
        if not texts:
            raise UserError(f"--format {format} writes text towers, and there is none.")
        written = []
        for name, tower in texts.items():
            (folder / name).mkdir()
            how = write_sentence_transformer(tower, folder / name, destination / name)
            page = {
                "tower": name,
                **page_of(tower, how, destination / name, added=False, own_head=True),
            }
            written.append(_finished(name, how, folder / name, page, [tower]))
        return written
    image, text = _pair(format, towers)
    from vlkd_cli.towers.whole.hf_clip import write_hf_clip
    from vlkd_cli.towers.whole.open_clip import write_open_clip

    write = write_open_clip if format == "open_clip" else write_hf_clip
    (folder / DUAL).mkdir()
    start = logit_start_of(checkpoint.distillers)
    try:
        how = write(image, text, start, folder / DUAL, destination / DUAL)
    except UserError:
        shutil.rmtree(folder / DUAL)
        raise
    return [_finished(DUAL, how, folder / DUAL, None, [image, text])]


def _pair(format: str, towers: Mapping[str, Tower]) -> tuple[Tower, Tower]:
    found = []
    for modality in ("image", "text"):
        names = [name for name, tower in towers.items() if tower.modality == modality]
        if len(names) != 1:
            there = f"there are several: {', '.join(names)}" if names else "there is none"
            raise UserError(
                f"--format {format} writes one image and one text tower together; of {modality}"
                f" towers {there}. Choose two by --tower."
            )
        found.append(towers[names[0]])
    return found[0], found[1]


def _finished(
    name: str,
    how: Export,
    folder: Path,
    page: Mapping[str, object] | None,
    towers: list[Tower],
) -> ExportedTower:
    if page is not None:
        text = yaml.safe_dump(dict(page), sort_keys=False, width=140)
        (folder / PAGE).write_text(text, encoding="utf-8")
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    return ExportedTower(name, how, files, sum(tower.count_parameters()[0] for tower in towers))
