"""From a recipe's tower section to a tower: builder, pooler, heads, what is trained; parts that do
not fit together are reported with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from vlkd_cli import catalog
from vlkd_cli.builders.adapters.any_tower import adapt
from vlkd_cli.builders.backbone import Backbone, BuildContext, Builder
from vlkd_cli.builders.guard import of_tower
from vlkd_cli.builders.trial import try_images
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Grid, ImageInput
from vlkd_cli.recipe.address import modality_of
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.schema import Component, HeadSpec, TowerSpec
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.towers.freezing import choose_parameters
from vlkd_cli.towers.outputs import (
    BACKBONE,
    INPUT,
    TOKENS,
    Head,
    Source,
    read_sources,
    reading_order,
)
from vlkd_cli.towers.own_pixels import check_pixels
from vlkd_cli.towers.tower import Tower


def assemble(
    name: str,
    spec: TowerSpec,
    *,
    outputs: Collection[str] | None = None,
    captions: Callable[[], Iterable[str]] | None = None,
    cache_dir: Path | str | None = None,
    run_folder: Path | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Tower:
    """Build a tower on the CPU in fp32. It seeds nothing: random weights come from torch's
    generator as it is.

    Args:
        name: the tower's name in the recipe.
        spec: its section, which has a `builder:` or a `run:`.
        outputs: what the recipe reads of it: a tower of a run brings the heads along that these
            need; None: all of them.
        captions: gives the captions at hand, for a tokenizer that is trained on them; None where
            weights of a checkpoint follow.
        cache_dir: where downloaded weights are cached unless the section sets it.
        run_folder: where a trained tokenizer is written and found again.
        files: what the checkpoint holds in addition to weights, by path in its run folder.

    Raises:
        RecipeError: the parts do not fit together.
        WeightsError: weights are missing or do not fit.
        CheckpointError: the run that it comes from cannot be read.
    """
    sources = [key for key in ("builder", "run", "follows") if getattr(spec, key)]
    if sources not in (["builder"], ["run"]):
        given = f"has {' and '.join(sources)}" if sources else "has no source of weights"
        raise RecipeError(f"tower '{name}' {given}. Give exactly one of builder and run.")
    if spec.run:
        from vlkd_cli.towers.trained import take_from_run

        return take_from_run(name, spec, outputs=outputs, cache_dir=cache_dir)
    context = BuildContext(name, captions, files, run_folder, spec.adapter)
    with of_tower(name):
        backbone = _backbone(spec, context, cache_dir)
        check_pixels(backbone, f"tower '{name}'")
        prepare_masks(name, spec, backbone)
        pooler = _pooler(name, spec, backbone)
        heads = build_heads(name, spec.all_heads, backbone, pooler)
        choose_parameters(
            name, backbone, pooler, {key: head.module for key, head in heads.items()}, spec.train
        )
        tower = connect(name, spec, backbone, pooler, heads, spec.dtype)
    tower.section = spec
    return tower


def build_heads(
    name: str,
    specs: Mapping[str, HeadSpec],
    backbone: Backbone,
    pooler: nn.Module | None,
    existing: Mapping[str, Head] | None = None,
) -> dict[str, Head]:
    """New heads, which may read each other and existing ones.

    Raises:
        RecipeError: a head reads what there is not, or its keys do not fit what it reads.
    """
    existing = existing or {}
    reads = {key: read_sources(spec.reads) for key, spec in specs.items()}
    feature_width: Any = backbone.width if pooler is None else pooler.width
    widths: dict[str, int | None] = {
        INPUT: 3,
        BACKBONE: int(feature_width),
        TOKENS: backbone.token_width,
        **{key: _width(head.module) for key, head in existing.items()},
    }
    try:
        order = reading_order({**{key: head.reads for key, head in existing.items()}, **reads})
    except ValueError as error:
        raise RecipeError(f"tower '{name}': {error}. Correct its `reads`.") from error
    grid = _grid(name, backbone) if any(map(_reads_positions, reads.values())) else None
    heads: dict[str, Head] = {}
    for key in (key for key in order if key in specs):
        width_in = 0
        for source in reads[key]:
            width = widths[source.output]
            if width is None:
                raise RecipeError(
                    f"tower '{name}': head '{key}' reads tokens, but this model has none. Let it"
                    " read the backbone."
                )
            width_in += width
        module = _component("head", name, specs[key], width_in, grid)
        if hasattr(module, "check_prefix"):
            try:
                module.check_prefix(_prefix_tokens(name, backbone))
            except RecipeError as error:
                raise RecipeError(f"tower '{name}': {error}") from error
        heads[key] = Head(module, reads[key], specs[key].at)
        widths[key] = _width(module)
    return heads


def connect(
    name: str,
    spec: TowerSpec,
    backbone: Backbone,
    pooler: nn.Module | None,
    heads: Mapping[str, Head],
    dtype: Literal["bf16", "fp16"] | None,
) -> Tower:
    """The tower of these parts.

    Raises:
        RecipeError: a head reads what it cannot take, a trainable backbone has a `dtype`, or it has
            no batch norms whose statistics could be frozen.
    """
    if dtype is not None and any(parameter.requires_grad for parameter in backbone.parameters()):
        raise RecipeError(
            f"tower '{name}': dtype: {dtype}: its backbone is trained, and only frozen ones are"
            " stored in 16 bits. Set train: none (or head), or remove dtype."
        )
    try:
        tower = Tower(
            name,
            backbone,
            pooler=pooler,
            heads=heads,
            masks=spec.masks,
            dtype=dtype,
            freeze_batch_norm_stats=spec.freeze_batch_norm_stats,
        )
    except ValueError as error:
        raise RecipeError(
            f"tower '{name}': {error}. Correct its `reads`, `at` or the tower's `masks`."
        ) from error
    if spec.freeze_batch_norm_stats and not tower.frozen_norms:
        raise RecipeError(
            f"tower '{name}': freeze_batch_norm_stats: has no effect: no batch norm is in the"
            " trained part of its backbone. Remove it."
        )
    return tower


def _backbone(spec: TowerSpec, context: BuildContext, cache_dir: Path | str | None) -> Backbone:
    assert spec.builder is not None
    name = context.tower
    builder_class: type[Builder] = catalog.load("builder", spec.builder)
    modality = _modality(name, spec, builder_class.modalities)
    keys = dict(spec.keys)
    if cache_dir is not None and "cache_dir" in signature_of("builder", spec.builder).key_names():
        keys.setdefault("cache_dir", str(cache_dir))
    try:
        builder: Builder = make("builder", spec.builder, keys)
    except (RecipeError, TypeError) as error:
        raise RecipeError(f"tower '{name}': {error}") from error
    own = spec.adapter is not None and not builder_class.takes_adapters
    if own and not builder_class.adaptable:
        raise RecipeError(
            f"tower '{name}': builder '{spec.builder}' takes no `adapter`. Use builder 'adapters'"
            " or remove it."
        )
    backbone = builder.build(modality, context)
    if own and spec.adapter is not None:
        method = make("adapter", spec.adapter.name, spec.adapter.keys)
        what = f"tower '{name}': adapter '{spec.adapter.name}'"
        adapt(backbone, spec.adapter.name, method, what)
    if spec.prompt is not None:
        if not backbone.takes_prompts:
            raise RecipeError(
                f"tower '{name}': `prompt` is for text towers of builder 'openclip'. Remove it."
            )
        make("prompt", spec.prompt.name, spec.prompt.keys).attach(backbone)
    return backbone


def _modality(name: str, spec: TowerSpec, offered: tuple[str, ...]) -> ModalityName:
    wanted = modality_of({name: spec}, name)
    if wanted is None:
        raise RecipeError(
            f"tower '{name}': it is not known whether it takes"
            f" {' or '.join(f'{word}s' for word in offered)}. Add"
            f" {' or '.join(f'`modality: {word}`' for word in offered)}."
        )
    if wanted not in offered:
        fitting = [
            builder
            for builder in catalog.names("builder")
            if wanted in attributes_of("builder", builder).get("modalities", ())
        ]
        raise RecipeError(
            f"tower '{name}': builder '{spec.builder}' builds {' and '.join(offered)} towers, not"
            f" {wanted} towers. Choose one of: {', '.join(fitting)}; or set `modality`."
        )
    return wanted


def prepare_masks(name: str, spec: TowerSpec, backbone: Backbone) -> None:
    """Give a backbone what the `masks:` of its section needs.

    Raises:
        RecipeError: it cannot hide positions in this way.
    """
    if spec.masks == "none":
        return
    if spec.masks not in backbone.hides:
        model = spec.keys.get("model")
        what = f"builder '{spec.builder}'" + (f", model '{model}'" if model else "")
        can = f" It can: {', '.join(sorted(backbone.hides))}." if backbone.hides else ""
        raise RecipeError(
            f"tower '{name}': masks: {spec.masks}: {what} cannot hide positions in this way. It"
            f" needs a vision transformer (for replace, Swin too).{can}"
        )
    if spec.masks == "replace":
        backbone.add_mask_token()


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
            f"tower '{name}': this model has no token output for pooler '{spec.pooler.name}'."
            " Remove the pooler."
        )
    pooler: nn.Module = _component("pooler", name, spec.pooler, backbone.token_width)
    if getattr(pooler, "needs_eot", False) and not getattr(backbone, "marks_end", False):
        raise RecipeError(
            f"tower '{name}': this model has no end-of-text token for pooler '{spec.pooler.name}'."
            " Use `last` or `mean`."
        )
    if getattr(pooler, "takes_prefix", False) and callable(backbone.input):
        raise RecipeError(
            f"tower '{name}': pooler '{spec.pooler.name}' joins the class token and the patches of"
            " an image. Use `mean`, `cls` or `eot` for texts."
        )
    if getattr(pooler, "needs_class_token", False) and not _prefix_tokens(name, backbone):
        raise RecipeError(
            f"tower '{name}': pooler '{spec.pooler.name}' needs a class token, and this model has"
            " none. Use `pooler: {name: mean}`."
        )
    return pooler


def _prefix_tokens(name: str, backbone: Backbone) -> int:
    """How many class and register tokens precede the patches; the first token of a text may
    represent the whole of it too."""
    if not isinstance(backbone.input, ImageInput):
        return int(callable(backbone.input))

    def prefix_of(network: Backbone, images: Tensor) -> int:
        tokens = network(images, tokens=True).tokens
        return 0 if tokens is None else int(tokens.prefix)

    return try_images(backbone, backbone.input.size_px, prefix_of, f"tower '{name}'")


def _component(kind: str, tower: str, spec: Component, width_in: int, *supplied: Any) -> Any:
    try:
        return make(kind, spec.name, spec.keys, width_in, *supplied)
    except (RecipeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"tower '{tower}': {kind} '{spec.name}' over width {width_in}: {error}. Correct its"
            " keys."
        ) from error


def _width(module: nn.Module) -> int:
    width: Any = module.width
    return int(width)


def _grid(name: str, backbone: Backbone) -> Grid | None:
    if not isinstance(backbone.input, ImageInput):
        return None
    try:
        return backbone.grid(backbone.input.size_px)
    except RecipeError as error:
        raise RecipeError(f"tower '{name}': {error}.") from error


def _reads_positions(reads: tuple[Source, ...]) -> bool:
    return any(source.output in (INPUT, TOKENS) for source in reads)
