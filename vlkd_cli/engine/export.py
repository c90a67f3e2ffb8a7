"""`vlkd export`: the towers of a run in the formats of their libraries."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.checkpoint import Checkpoint, Source
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.hand_over import CARD, HandOver, push, write_card
from vlkd_cli.engine.launching.launch import quieten_libraries
from vlkd_cli.engine.launching.start_evaluation import find_trained
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.export import DUAL, ExportedTower, export_pair, export_tower
from vlkd_cli.towers.tower import Tower

UNFINISHED = ".unfinished"
OPEN_CLIP = "vlkd_cli.builders.openclip.towers"
"""Of towers that may be halves of one model of open_clip."""
Format = Literal["library", "onnx", "open_clip", "hf_clip", "sentence_transformers"]


def export(
    *,
    target: str | None,
    output: Path,
    towers: Sequence[str] = (),
    overrides: Sequence[str] = (),
    force: bool = False,
    runs: Path = Path("runs"),
    trust: bool = False,
    format: Format = "library",
    normalize: bool = False,
    int8: bool = False,
    wise_ft: float | None = None,
    hand_over: HandOver = HandOver(),
) -> None:
    """Write towers of a run or checkpoint to `output/TOWER`, with averaged weights if the run
    tracked an average, and print how to load them.

    All of them appear at once when they are whole; before that they are in `output/.unfinished`.

    Args:
        target: a run, by folder or name, or a checkpoint; None: the newest run.
        towers: names of those wanted; by default all.
        overrides: changes of the run's recipe as `--set` has them, e.g. where a pretrained model
            lies now.
        trust: let the run's recipe name components of other packages.
        force: write into a folder that holds something already, over towers of these names.
        format: each tower as its library has it, as ONNX, or see `engine.export_whole`.
        normalize, int8: see `engine.export_onnx`.
        wise_ft: write the trained towers this far from their start (0) to their end (1).
        hand_over: whether a card is written, and where the export is sent.

    Raises:
        UserError: there is no such run, checkpoint or tower, or the folder cannot be written.
    """
    quieten_libraries()
    _refuse_unused(format, {"--normalize": normalize, "--int8": int8})
    hand_over.check()
    if wise_ft is not None and hand_over.wants_card:
        raise UserError(
            "--card gives the results of the run's last weights, which --wise-ft changes. Leave one"
            " of them out."
        )
    _refuse_full(output, force)
    recipe, folder, path = find_trained(target, overrides, runs, trust)
    chosen = _chosen(recipe, towers)
    checkpoint = Checkpoint.load(path)
    built = load_towers(recipe, folder.path, checkpoint)
    if wise_ft is not None:
        starts = load_towers(recipe, folder.path, checkpoint, trained=False)
        built = _interpolated(starts, built, wise_ft)
    wanted = {name: built[name].eval() for name in chosen}
    with _staged(output) as unfinished:
        if format == "onnx":
            from vlkd_cli.engine.export_onnx import OnnxOptions, write_onnx

            options = OnnxOptions(normalize, int8)
            written = write_onnx(recipe, checkpoint, wanted, built, options, unfinished, output)
        elif format == "library":
            written = _write_towers(wanted, checkpoint, unfinished, output)
        else:
            from vlkd_cli.engine.export_whole import write_whole

            written = write_whole(format, wanted, checkpoint, unfinished, output)
        if hand_over.wants_card:
            paths = (unfinished, output, format)
            write_card(hand_over, recipe, checkpoint, folder.path, wanted, written, *paths)
            (unfinished / CARD).replace(output / CARD)
        for name in [tower.name for tower in written]:
            if (output / name).exists():
                shutil.rmtree(output / name)
            (unfinished / name).replace(output / name)
    _report(written, output, checkpoint.source)
    if hand_over.wants_card:
        console.say(f"Card: {output / CARD}")
    if hand_over.push is not None:
        console.announce(f"Sending to {hand_over.push} ...")
        console.say(f"Sent to {push(hand_over, output, written)}")


def _interpolated(
    starts: Mapping[str, Tower], ends: Mapping[str, Tower], alpha: float
) -> dict[str, Tower]:
    from vlkd_cli.evaluation.probes.wise_ft import interpolate_towers

    trained = [name for name, tower in ends.items() if not tower.is_frozen]
    console.say(f"Weights of {' and '.join(trained)}: {alpha:g} of the way from start to end.")
    return {
        **ends,
        **{name: interpolate_towers(starts[name], ends[name], alpha) for name in trained},
    }


def _write_towers(
    towers: Mapping[str, Tower], checkpoint: Checkpoint, folder: Path, destination: Path
) -> list[ExportedTower]:
    """Each tower as its library has it, and a pair that its library has one model for also
    together."""
    written = []
    for name, tower in towers.items():
        (folder / name).mkdir()
        written.append(export_tower(tower, folder / name, destination / name, name=name))
    pair = export_pair(
        list(towers.values()), checkpoint.distillers, folder / DUAL, destination / DUAL
    )
    if pair is not None:
        return [*written, pair]
    builders = [type(tower.encoder).__module__ for tower in towers.values()]
    if builders == [OPEN_CLIP, OPEN_CLIP]:
        from vlkd_cli.engine.export_whole import write_whole
        from vlkd_cli.towers.whole.parts import Mismatch

        with contextlib.suppress(Mismatch):
            written += write_whole("open_clip", towers, checkpoint, folder, destination)
    return written


def _refuse_unused(format: Format, options: Mapping[str, bool]) -> None:
    for option, given in options.items():
        if given and format != "onnx":
            raise UserError(
                f"{option} has no effect on --format {format}. Leave it out, or add --format onnx."
            )


def _chosen(recipe: Recipe, towers: Sequence[str]) -> list[str]:
    for name in towers:
        if name not in recipe.towers:
            raise UserError(
                f"--tower {name}: the run has no such tower.{did_you_mean(name, recipe.towers)} It"
                f" has: {', '.join(recipe.towers)}."
            )
    return [name for name in recipe.towers if name in towers or not towers]


def _refuse_full(output: Path, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file. Name a folder.")
    if (output / "recipe.yaml").is_file():
        raise UserError(
            f"{output} is a run folder. Name another folder for the towers: `vlkd export {output}"
            " FOLDER`."
        )
    if not force and output.is_dir() and any(path.name != UNFINISHED for path in output.iterdir()):
        raise UserError(
            f"{output} is not empty. Name another folder, or add --force to replace the towers"
            " in it."
        )


@contextlib.contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A temporary folder inside `output` to write to; errors of the disk are reported in one
    line."""
    from safetensors import SafetensorError

    unfinished = output / UNFINISHED
    fresh = not output.exists()
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        yield unfinished
    except (OSError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise UserError(
            f"cannot write {output}: {reason}. Free space or name another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if fresh and output.is_dir() and not any(output.iterdir()):
            output.rmdir()


def _report(written: Sequence[ExportedTower], output: Path, source: Source) -> None:
    title = f"{source} -> {output}"
    rows = [
        [
            tower.name,
            tower.how.format,
            tower.num_parameters,
            tower.how.adapter or "-",
            " ".join(tower.files),
        ]
        for tower in written
    ]
    console.print_table(title, ["tower", "format", "parameters", "adapter", "files"], rows)
    for tower in written:
        console.say(f"{tower.name}, Python: {tower.how.python}")
        if tower.how.recipe:
            recipe = yaml.safe_dump(
                tower.how.recipe, default_flow_style=True, sort_keys=False, width=10**6
            )
            console.say(f"{tower.name}, recipe: {recipe.strip()}")
        if tower.how.note:
            console.say(f"{tower.name}, note: {tower.how.note}")
