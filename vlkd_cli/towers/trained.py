"""A tower out of a run: as it was trained there, with the heads that are read and new ones on
top."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vlkd_cli import catalog, console
from vlkd_cli.builders.adapters.any_tower import adapt
from vlkd_cli.builders.backbone import Backbone, Builder
from vlkd_cli.checkpoint import Checkpoint, Source, resolve
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.recipe.address import modality_of
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import Component, TowerSpec
from vlkd_cli.towers.assemble import assemble, build_heads, connect, prepare_masks
from vlkd_cli.towers.freezing import choose_parameters
from vlkd_cli.towers.outputs import HEAD, Outputs
from vlkd_cli.towers.soup import soup_of
from vlkd_cli.towers.tower import Tower

FOLLOWED = "tower."
"""Prefix of a follower's parameters in a checkpoint."""


def take_from_run(
    name: str, spec: TowerSpec, *, outputs: Collection[str] | None, cache_dir: Path | str | None
) -> Tower:
    """A trained tower with the freezing, masks and new heads that this recipe asks for.

    A tower that follows another comes with its own weights. Of the run's heads those come along
    that `outputs` needs, and the one called `head`; a new head replaces the run's of its name.
    """
    runs = spec.run if isinstance(spec.run, list) else [str(spec.run)]
    taken = [_taken(name, spec, run, cache_dir) for run in runs]
    trained, source = taken[0].tower, taken[0].source
    if len(taken) > 1:
        _warn_of_other_starts(name, runs, taken)
        trained = soup_of([each.tower for each in taken], runs)
        files = ", ".join(each.source.file for each in taken)
        source = Source(" + ".join(each.source.run for each in taken), files, source.step, False)
        source = source._replace(averaged=all(each.source.averaged for each in taken))
    own = _refitted(name, spec, trained, outputs, taken[0].section.dtype)
    own.source = source
    return own


class _Taken(NamedTuple):
    """A tower as a run trained it, its section there, and what it started from."""

    tower: Tower
    section: TowerSpec
    start: tuple[object, ...]
    source: Source


def _taken(name: str, spec: TowerSpec, run: str, cache_dir: Path | str | None) -> _Taken:
    checkpoint = _checkpoint_of(name, run, spec.checkpoint)
    assert checkpoint.path is not None
    # Its recipe is somebody else's program, even if this recipe is trusted.
    recipe = checkpoint.read_recipe(
        trust=bool(spec.keys.get("trust", False)),
        remedy=f"Add `trust: true` next to the `run:` of tower '{name}' if you trust its author.",
    )
    sections = recipe.towers
    chosen = spec.tower or _only_of_modality(name, spec, sections, checkpoint.path)
    if chosen not in sections:
        raise RecipeError(
            f"tower '{name}': run '{run}' has no tower '{chosen}'."
            f"{catalog.did_you_mean(chosen, sections)} It has: {', '.join(sections)}."
        )
    keys = [key for key in spec.keys if key != "trust"]
    if spec.pooler is not None or keys:
        extra = ", ".join([*(["pooler"] if spec.pooler else []), *keys])
        raise RecipeError(f"tower '{name}' comes from a run as it was trained; remove {extra}.")
    section = sections[chosen]
    is_random = not (section.run or section.keys.get("pretrained"))
    start = (section.builder, section.run, section.keys, recipe.train.seed if is_random else None)
    tower = _as_trained(chosen, sections, checkpoint, cache_dir)
    return _Taken(tower, section, start, checkpoint.source)


def _warn_of_other_starts(name: str, runs: Sequence[str], taken: Sequence[_Taken]) -> None:
    for run, each in zip(runs, taken, strict=True):
        if each.start != taken[0].start:
            console.warn(
                f"tower '{name}': {runs[0]} and {run} started from other weights, and the average"
                " of such runs rarely works. Average runs that fine-tuned the same weights."
            )
            return


def _as_trained(
    chosen: str,
    sections: Mapping[str, TowerSpec],
    checkpoint: Checkpoint,
    cache_dir: Path | str | None,
) -> Tower:
    section = sections[chosen]
    follows = section.follows is not None
    state = {}
    if follows:
        state = {
            key.removeprefix(FOLLOWED): value for key, value in checkpoint.tower(chosen).items()
        }
        section = sections[str(section.follows)]
        # It carries the heads that its run read of it.
        heads = {
            key: head
            for key, head in section.all_heads.items()
            if any(entry.startswith(_prefix(key)) for entry in state)
        }
        section = section.model_copy(
            update={"head": heads.pop(HEAD, None), "heads": heads, "masks": sections[chosen].masks}
        )
    assert checkpoint.path is not None
    tower = assemble(
        chosen,
        # Whether it stays in 16 bits depends on what becomes of it here.
        section.model_copy(update={"dtype": None}),
        cache_dir=cache_dir,
        run_folder=checkpoint.path.parent.parent,
        files=checkpoint.files,
    )
    if follows:
        tower.load_state_dict(state, strict=False)
    # Of a tower that was frozen there, the checkpoint holds nothing: it is what its builder gives.
    elif not tower.is_frozen:
        tower.load_trainable_state(checkpoint.tower(chosen))
    return tower


def _refitted(
    name: str,
    spec: TowerSpec,
    trained: Tower,
    outputs: Collection[str] | None,
    was_stored_in: Literal["bf16", "fp16"] | None,
) -> Tower:
    backbone, pooler = trained.encoder, trained.pooler
    if spec.adapter is not None:
        _adapt(name, spec.adapter, trained)
    if spec.masks == "replace" and backbone.mask_token is not None:
        pass
    else:
        backbone.mask_token = None
        prepare_masks(name, spec, backbone)
    brought = {key: head for key, head in trained.parts().items() if key not in spec.all_heads}
    new = build_heads(name, spec.all_heads, backbone, pooler, brought)
    heads = {**brought, **new}
    if outputs is not None:
        read = Outputs(heads).closure({*outputs, HEAD})
        heads = {key: head for key, head in heads.items() if key in read or key in new}
    choose_parameters(
        name, backbone, pooler, {key: head.module for key, head in heads.items()}, spec.train
    )
    assert trained.section is not None
    dtype = spec.dtype or (None if _is_trained(backbone) else was_stored_in)
    own = connect(name, spec, backbone, pooler, heads, dtype)
    specs = {**trained.section.all_heads, **spec.all_heads}
    specs = {key: specs[key] for key in heads}
    own.section = trained.section.model_copy(
        update={
            "head": specs.pop(HEAD, None),
            "heads": specs,
            "masks": spec.masks,
            "dtype": dtype,
            "adapter": spec.adapter or trained.section.adapter,
        }
    )
    return own


def _adapt(name: str, spec: Component, trained: Tower) -> None:
    """Attach an adapter to a tower that was trained without one."""
    section, what = trained.section, f"tower '{name}': adapter '{spec.name}'"
    assert section is not None and section.builder is not None
    if trained.encoder.adapter_name:
        raise RecipeError(
            f"{what}: the run's tower has adapter '{trained.encoder.adapter_name}' already. Export"
            " it, which merges that, and take the exported weights."
        )
    builder: type[Builder] = catalog.load("builder", section.builder)
    if builder.takes_adapters or not builder.adaptable:
        raise RecipeError(f"{what}: builder '{section.builder}' of the run takes none. Remove it.")
    adapt(trained.encoder, spec.name, make("adapter", spec.name, spec.keys), what)


def _is_trained(backbone: Backbone) -> bool:
    return any(parameter.requires_grad for parameter in backbone.parameters())


def _prefix(head: str) -> str:
    return "head." if head == HEAD else f"heads.{head}."


def _checkpoint_of(name: str, run: str, choice: Literal["best", "last"] | None) -> Checkpoint:
    try:
        return Checkpoint.load(resolve(run, choice))
    except CheckpointError as error:
        raise CheckpointError(f"tower '{name}': {error}") from error


def _only_of_modality(
    name: str, spec: TowerSpec, sections: Mapping[str, TowerSpec], file: Path
) -> str:
    wanted: object = modality_of({name: spec}, name)
    fitting = [
        key
        for key, section in sections.items()
        # A copy of another tower is where that started.
        if not section.follows
        and section.like not in sections
        and wanted in (None, modality_of(sections, key))
    ]
    if len(fitting) != 1:
        raise RecipeError(
            f"tower '{name}': '{file}' holds {len(fitting)} {wanted or ''} towers. Choose one with"
            f" `tower:`: {', '.join(sections)}."
        )
    return fitting[0]
