"""What Python programs call: `import vlkd_cli`, then `vlkd_cli.load(...)`. Importing this module
imports neither torch nor anything else that is slow; calling does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vlkd_cli.builders.by_task import TaskRow
    from vlkd_cli.engine.composed import Composed
    from vlkd_cli.engine.encoder import Encoder
    from vlkd_cli.engine.target import Target
    from vlkd_cli.recipe.types import Precision

__all__ = ["compose", "describe_models", "list_model_options", "load", "open_run", "synthesize"]


def load(
    target: str | Path,
    tower: str | None = None,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision | None = None,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    trust: bool = False,
) -> Encoder:
    """The encoders of what was trained or pretrained, for `encode`.

    Prints one line on standard error that names the weights: of a run, the best checkpoint if it
    has one, else the last; averaged if the run tracked an average.

    Args:
        target: a run (its folder, or its name below `runs`), a checkpoint, a folder that
            `vlkd export` wrote, a recipe, or a model: a name of `vlkd list-models --task`, or
            `BUILDER:MODEL[:PRETRAINED]`, e.g. `openclip:ViT-B-32:openai`.
        tower: by name, or `image` or `text`; by default each call of `encode` takes the tower that
            fits its items.
        device: `auto` is a GPU where there is one.
        precision: of the forward pass; by default the recipe's, which its suites use too.
        overrides: changes of the recipe, e.g. `["towers.text.model=/models/bert"]`.
        runs: the folder of runs.
        trust: let what comes with a run or an exported folder run code from outside vlkd.

    Raises:
        UserError: there is no such target or tower, or its weights cannot be loaded.
    """
    from vlkd_cli.engine.encoder import load_encoder

    return load_encoder(
        str(target),
        tower,
        device=device,
        precision=precision,
        overrides=overrides,
        runs=Path(runs),
        trust=trust,
    )


def open_run(
    target: str | Path,
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    trust: bool = False,
) -> Target:
    """The towers of a run as networks, on the CPU in eval mode: `open_run(RUN).tower("image")`
    encodes batches of tensors, `tower.encode(images)` one output, `tower.outputs(images, names)`
    several.

    Args:
        target, overrides, runs, trust: see `load`.

    Raises:
        UserError: there is no such target, or its weights cannot be loaded.
    """
    from vlkd_cli.engine.target import open_target

    return open_target(str(target), overrides, runs=Path(runs), trust=trust)


def compose(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Composed:
    """What a recipe trains, and what it trains on, as `vlkd train` would start it in one process.

    `composition(batch, progress)` is the loss with its terms and changes no state;
    `composition.commit(progress)` moves queues, banks, centers and followers after the optimizer
    step.

    Args:
        recipe: its file, or the name of a shipped one.
        overrides: changes of it, e.g. `["train.batch_size=32"]`.
        device: `auto` is a GPU where there is one.

    Raises:
        UserError: something does not fit; the message names what to change.
    """
    from vlkd_cli.engine import composed

    return composed.compose(recipe, overrides, device=device)


def synthesize(
    recipe: str | Path,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    runs: str | Path = "runs",
    trust: bool = False,
) -> dict[str, object]:
    """Write triplets to train on, as `vlkd synthesize RECIPE OUT` does: passages are mined for each
    query, and the margin between a positive and a negative passage is scored.

    An interrupted call resumes; a complete one returns at once.

    Args:
        recipe: a recipe with a section `synthesis`, or a run of one, whose weights then mine.
        output: the folder that is written.
        overrides: changes of the recipe, e.g. `["synthesis.relations=30"]`.
        device: `auto` is a GPU where there is one.
        runs: the folder of runs.
        trust: let what comes with a run execute code from outside vlkd.

    Returns:
        `relations`, the path of the file, and the content of OUT/synthesis.json: `counts`,
        `share_of_negative_margins`, `data`, `synthesis`, `towers`, `digest`, `version`.

    Raises:
        UserError: something does not fit; the message names what to change.
    """
    from dataclasses import replace

    from vlkd_cli.engine import synthesize as engine

    job = engine.prepared(str(recipe), output, overrides, Path(runs), trust)
    return engine.summary(engine.synthesized(replace(job, device=device)))


def describe_models(task: str | None = None) -> list[TaskRow]:
    """The models that a recipe takes by name, of one task or of all; see
    `builders.by_task.describe_models`.

    Raises:
        UserError: no such task.
    """
    from vlkd_cli.builders import by_task

    return by_task.describe_models(task)


def list_model_options(name: str) -> dict[str, Any]:
    """What a model by name expands to and what can be set on its towers; see
    `recipe.model_options.list_model_options`.

    Raises:
        UserError: no such model.
    """
    from vlkd_cli.builders import by_task
    from vlkd_cli.recipe import model_options

    by_task.refuse_unknown_model(name)
    return model_options.list_model_options(name)
