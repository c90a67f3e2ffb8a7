"""From a recipe's tower section to a tower: builder, pooler, head, what learns; every misfit is
told with its remedy."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from vlkd_cli import catalog
from vlkd_cli.builders.backbone import Backbone, BuildContext, Builder
from vlkd_cli.builders.guard import of_tower
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.recipe.schema import Component, TowerSpec
from vlkd_cli.towers.freezing import choose_parameters
from vlkd_cli.towers.tower import Tower

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")


def assemble(
    name: str,
    spec: TowerSpec,
    *,
    captions: Callable[[], Iterable[str]] | None = None,
    cache_dir: Path | str | None = None,
    run_folder: Path | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
    peers: Mapping[str, Tower] | None = None,
) -> Tower:
    """Build a tower on the CPU in fp32. It seeds nothing: random weights come from torch's
    generator as it stands.

    Args:
        name: the tower's name in the recipe.
        spec: its section.
        captions: gives the captions at hand, for a tokenizer that is trained on them; None where
            weights of a checkpoint follow.
        cache_dir: where downloaded weights are stored unless the section says so itself.
        run_folder: where a trained tokenizer is written and found again.
        files: what the checkpoint holds beside weights, by path in its run folder.
        peers: towers that were assembled before, for one that follows another.

    Raises:
        RecipeError: the parts do not fit together.
        WeightsError: weights are missing or do not fit.
    """
    sources = [key for key in ("builder", "run", "follows") if getattr(spec, key)]
    if len(sources) != 1:
        given = f"has {' and '.join(sources)}" if sources else "says nothing of where it comes from"
        raise RecipeError(f"tower '{name}' {given}. Give exactly one of builder, run, follows.")
    if spec.follows:
        return _follower(name, spec, peers or {})
    if spec.run:
        return _from_run(name, spec, cache_dir=cache_dir)
    context = BuildContext(name, captions, files, run_folder, spec.adapter)
    return _build(spec, context, cache_dir=cache_dir)


def _build(spec: TowerSpec, context: BuildContext, *, cache_dir: Path | str | None) -> Tower:
    assert spec.builder is not None
    name = context.tower
    builder_class: type[Builder] = catalog.load("builder", spec.builder)
    modality = modality_of(name, spec, builder_class.modalities)
    builder = _make(builder_class, spec, name, cache_dir)
    if spec.adapter is not None and not builder_class.takes_adapters:
        raise RecipeError(
            f"tower '{name}': builder '{spec.builder}' takes no `adapter`. Use builder 'adapters'"
            " or remove it."
        )
    with of_tower(name):
        backbone = builder.build(modality, context)
    if spec.prompt is not None:
        if modality != "text" or spec.builder != "openclip":
            raise RecipeError(
                f"tower '{name}': `prompt` is for text towers of builder 'openclip'. Remove it."
            )
        catalog.load("prompt", spec.prompt.name)(**spec.prompt.keys).attach(backbone)
    pooler = _pooler(name, spec, backbone)
    head = _head(name, spec.head, pooler.width if pooler is not None else backbone.width)  # type: ignore[arg-type]
    choose_parameters(
        name, backbone, pooler, head if head is not None else nn.Identity(), spec.train
    )
    tower = Tower(name, backbone, pooler=pooler, head=head)
    tower.section = spec
    return tower


def modality_of(name: str, spec: TowerSpec, offered: tuple[str, ...]) -> Modality:
    """What the tower encodes: what its section says, else the builder's only modality, else what
    its name says.

    Raises:
        RecipeError: nothing tells, or the builder does not offer it.
    """
    wanted = spec.modality or _word_in(name)
    if wanted is None and len(offered) == 1:
        wanted = offered[0]  # type: ignore[assignment]
    if wanted is None:
        raise RecipeError(
            f"tower '{name}': nothing tells whether it takes images or texts. Add `modality: image`"
            " or `modality: text`."
        )
    if wanted not in offered:
        raise RecipeError(
            f"tower '{name}': builder '{spec.builder}' builds {' and '.join(offered)} towers, not"
            f" {wanted} towers. {_others(wanted)}"
        )
    return wanted


def _others(modality: str) -> str:
    fitting = {
        "image": "openclip, torchvision, timm",
        "text": "openclip, huggingface, sbert, adapters",
    }[modality]
    return f"Choose one of: {fitting}; or set `modality`."


def _make(
    builder_class: type[Builder], spec: TowerSpec, name: str, cache_dir: Path | str | None
) -> Builder:
    keys = dict(spec.keys)
    known = list(inspect.signature(builder_class.__init__).parameters)[1:]
    for key in keys:
        if key not in known:
            raise RecipeError(
                f"tower '{name}': builder '{spec.builder}' has no key '{key}'."
                f"{catalog.did_you_mean(key, known)} Accepted: {', '.join(known)}."
            )
    if "cache_dir" in known and cache_dir is not None:
        keys.setdefault("cache_dir", str(cache_dir))
    try:
        return builder_class(**keys)
    except TypeError as error:
        raise RecipeError(f"tower '{name}': builder '{spec.builder}': {error}.") from error


def _pooler(name: str, spec: TowerSpec, backbone: Backbone) -> nn.Module | None:
    if spec.pooler is None:
        if not backbone.pools:
            raise RecipeError(
                f"tower '{name}': builder '{spec.builder}' gives tokens only. Add a pooler, e.g."
                " `pooler: {name: mean}`."
            )
        return None
    if backbone.token_width is None:
        raise RecipeError(
            f"tower '{name}': this model gives no tokens for pooler '{spec.pooler.name}'. Remove"
            " the pooler."
        )
    pooler = _component("pooler", name, spec.pooler, backbone.token_width)
    if getattr(pooler, "needs_eot", False) and not getattr(backbone, "marks_end", False):
        raise RecipeError(
            f"tower '{name}': this model marks no end of text for pooler '{spec.pooler.name}'. Use"
            " `last` or `mean`."
        )
    return pooler


def _head(name: str, spec: Component | None, width_in: int) -> nn.Module | None:
    return None if spec is None else _component("head", name, spec, width_in)


def _component(kind: str, tower: str, spec: Component, width_in: int) -> Any:
    try:
        return catalog.load(kind, spec.name)(width_in, **spec.keys)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"tower '{tower}': {kind} '{spec.name}' over width {width_in}: {error}. Correct its"
            " keys."
        ) from error


def _follower(name: str, spec: TowerSpec, peers: Mapping[str, Tower]) -> Tower:
    if spec.follows is None or spec.follows not in peers:
        raise RecipeError(
            f"tower '{name}' follows '{spec.follows}', which is no tower before"
            f" it.{catalog.did_you_mean(spec.follows or '', peers)}"
        )
    follower = copy.deepcopy(peers[spec.follows])
    follower.name = name
    return follower.requires_grad_(False)


def _from_run(name: str, spec: TowerSpec, *, cache_dir: Path | str | None) -> Tower:
    """A trained tower out of a run folder or checkpoint, with the freezing that this recipe asks
    for."""
    checkpoint = _checkpoint_of(name, spec)
    assert checkpoint.path is not None
    # Its recipe is somebody else's program, whatever this one says about itself.
    sections = checkpoint.read_recipe(
        trust=bool(spec.keys.get("trust", False)),
        remedy=f"Add `trust: true` beside the `run:` of tower '{name}' if you trust who made it.",
    ).towers
    chosen = spec.tower or _only_of_modality(name, spec, sections, checkpoint.path)
    if chosen not in sections:
        raise RecipeError(
            f"tower '{name}': run '{spec.run}' has no tower '{chosen}'."
            f"{catalog.did_you_mean(chosen, sections)} It has: {', '.join(sections)}."
        )
    keys = [key for key in spec.keys if key != "trust"]
    if spec.head is not None or spec.pooler is not None or keys:
        extra = ", ".join(
            [*(["head"] if spec.head else []), *(["pooler"] if spec.pooler else []), *keys]
        )
        raise RecipeError(f"tower '{name}' comes from a run as it was trained; remove {extra}.")
    section = sections[chosen]
    if section.follows:
        raise RecipeError(
            f"tower '{name}': '{chosen}' of run '{spec.run}' follows another tower. Name"
            f" '{section.follows}' instead."
        )
    if section.run:
        tower = _from_run(chosen, section, cache_dir=cache_dir)
    else:
        context = BuildContext(
            chosen,
            files=checkpoint.files,
            run_folder=checkpoint.path.parent.parent,
            adapter=section.adapter,
        )
        tower = _build(section, context, cache_dir=cache_dir)
    # Of a tower that was frozen there, the checkpoint holds nothing: it is what its builder gives.
    if not tower.is_frozen:
        tower.load_trainable_state(checkpoint.tower(chosen))
    encoder = tower.encoder
    head = None if isinstance(tower.head, nn.Identity) else tower.head
    choose_parameters(name, encoder, tower.pooler, tower.head, spec.train)
    own = Tower(name, encoder, pooler=tower.pooler, head=head)
    own.section = tower.section
    own.source = checkpoint.source
    return own


def _checkpoint_of(name: str, spec: TowerSpec) -> Checkpoint:
    try:
        return Checkpoint.load(resolve(str(spec.run), spec.checkpoint))
    except CheckpointError as error:
        raise CheckpointError(f"tower '{name}': {error}") from error


def _only_of_modality(
    name: str, spec: TowerSpec, sections: Mapping[str, TowerSpec], file: Path
) -> str:
    def encodes(key: str, section: TowerSpec) -> str | None:
        offered: tuple[str, ...] = (
            catalog.load("builder", section.builder).modalities if section.builder else ()
        )
        return section.modality or _word_in(key) or (offered[0] if len(offered) == 1 else None)

    wanted = spec.modality or _word_in(name)
    fitting = [
        key
        for key, section in sections.items()
        if not section.follows and encodes(key, section) == wanted
    ]
    if len(fitting) != 1:
        raise RecipeError(
            f"tower '{name}': '{file}' holds {len(fitting)} {wanted or ''} towers. Say which by"
            f" `tower:`: {', '.join(sections)}."
        )
    return fitting[0]


def _word_in(name: str) -> Modality | None:
    return next((word for word in MODALITIES if word in name.lower()), None)
