"""Image models of timm without their classifier."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import (
    Backbone,
    BuildContext,
    Builder,
    Encoded,
    Export,
    ModelInfo,
    Tokens,
)
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.hiding import Places
from vlkd_cli.builders.hub import prepare_hub
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.places import is_local, locate, unfetchable, weights_file
from vlkd_cli.builders.trial import refuse_keys, try_images, width_of
from vlkd_cli.builders.weight_files import check_file, first_line, read_weights
from vlkd_cli.builders.weights import fit_weights, write_weights
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.numerics.positions import sine_cosine
from vlkd_cli.preprocessing import ImageInput, Resizing
from vlkd_cli.recipe.types import LibraryKeys, ModalityName, PositiveInt

NOT_FOR_TOWERS = {
    "checkpoint_path": "a file of weights is the tower's `pretrained`.",
    "cache_dir": "set `cache_dir` of the tower, not of `config`.",
    "features_only": "towers give one feature and its tokens. Remove it.",
    "img_size": "set `image_size` of the tower, not of `config`.",
    "in_chans": "towers take RGB images. Remove it.",
    "num_classes": "towers have no classifier. Remove it.",
    "out_indices": "towers give one feature and its tokens. Remove it.",
    "pretrained": "set `pretrained` of the tower, not of `config`.",
    "pretrained_cfg": "weights are named by the tower's `model` and `pretrained`. Remove it.",
    "pretrained_cfg_overlay": "weights are named by the tower's `pretrained`. Remove it.",
}
"""Keys of timm's create_model that would make something else than a tower, or that the tower has
already."""
RESIZING: dict[str, Resizing] = {"center": "shortest", "squash": "squash", "border": "longest"}


class Timm(Builder):
    """Any image model of timm, built without its classifier.

    Args:
        model: a name of `vlkd list-models --builder timm`, with or without a tag
            (`resnet50.a1_in1k`), or a hub id as `hf-hub:org/name`.
        pretrained: false: random weights; true: the weights of the name's tag, or the model's
            default ones; a tag; or a file or folder of weights in timm's names (the classifier in
            it is dropped).
        image_size: side in pixels that the tower sees instead of the model's own.
        config: further arguments of timm's create_model, e.g. `{drop_path_rate: 0.1}`.
        positions: what a vision transformer adds to its patches: `learned`, as the model has them,
            or `sincos`, a fixed table of sines and cosines (MAE, MoCo v3).
        cache_dir: folder for downloaded weights; by default VLKD_CACHE or ~/.cache/vlkd.
    """

    modalities = ("image",)
    adaptable = True

    def __init__(
        self,
        *,
        model: str,
        pretrained: bool | str = False,
        image_size: PositiveInt | None = None,
        config: LibraryKeys | None = None,
        positions: Literal["learned", "sincos"] = "learned",
        cache_dir: str | None = None,
    ) -> None:
        self.positions = positions
        self.model = model
        self.pretrained = pretrained
        self.image_size = image_size
        self.config = config or {}
        self.positions = positions
        self.cache_dir = cache_dir

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        name = self._name()
        what = f"timm model '{name}'"
        refuse_keys(self.config, NOT_FOR_TOWERS, what)
        local = isinstance(self.pretrained, str) and is_local(self.pretrained)
        if self.pretrained is False or local:
            network = self._built(name, what)
            if local:
                _load_file(network, str(self.pretrained), what)
        else:
            network = self._published(name, what)
        if not _pools(network):
            raise RecipeError(
                f"{what} gives a map and no feature of the whole image. Choose a classifier's name"
                " without '_enc'."
            )
        settings: list[object] = [self.model, self.image_size, self.config]
        if self.positions == "sincos":
            _fix_positions(network, what, trained=self.pretrained is not False)
            settings.append(self.positions)
        return TimmImage(
            network,
            _image_input(network, self.image_size),
            name=name,
            arguments=self._arguments,
            settings=json.dumps(settings, sort_keys=True, default=str),
        )

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        import timm
        from timm.models import get_pretrained_cfg

        if modality not in (None, "image"):
            return []
        tags: dict[str, list[str]] = {}
        for full in timm.list_pretrained():
            name, _, tag = full.partition(".")
            tags.setdefault(name, []).append(tag)
        rows = []
        for name in timm.list_models():
            if not fnmatch(name.lower(), pattern.lower()) or (pretrained_only and name not in tags):
                continue
            settings = get_pretrained_cfg(name)
            size = (
                int(settings.input_size[-1])
                if settings is not None and settings.input_size
                else None
            )
            rows.append(
                ModelInfo(name, "timm", "image", None, None, size, tuple(tags.get(name, ())))
            )
        return rows

    @classmethod
    def measured(cls, row: ModelInfo) -> ModelInfo | None:
        import timm

        with torch.device("meta"):
            network: Any = timm.create_model(row.name, num_classes=0)
        if not _pools(network):
            return None
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return row._replace(width=int(network.head_hidden_size), parameters=parameters)

    def _name(self) -> str:
        import timm

        if self.model.startswith("hf-hub:"):
            return self.model
        base, _, tag = self.model.partition(".")
        if not timm.is_model(base):
            near = did_you_mean(base, timm.list_models())
            raise RecipeError(
                f"timm model '{self.model}' is unknown.{near} See `vlkd list-models --builder"
                " timm`."
            )
        if isinstance(self.pretrained, str) and not is_local(self.pretrained):
            tag = self.pretrained
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
        if tag and tag not in known:
            listed = (
                f"Known: {', '.join(known)}; or a file." if known else "It has none; give a file."
            )
            raise RecipeError(
                f"timm model '{base}' has no weights '{tag}'.{did_you_mean(tag, known)} {listed}"
            )
        if self.pretrained is True and not known:
            raise RecipeError(
                f"timm model '{base}' has no published weights. Set `pretrained: false` or give a"
                " file."
            )
        return f"{base}.{tag}" if tag else base

    def _built(self, name: str, what: str) -> nn.Module:
        """The network with random weights."""
        with one_line(what, "Correct the tower's `config` or `image_size`."):
            return self._create(name, what)

    def _create(self, name: str, what: str, **options: object) -> nn.Module:
        import timm

        self._arguments: dict[str, object] = {"num_classes": 0, **self.config}
        network: nn.Module
        try:
            if self.image_size is not None:
                sized = {"img_size": self.image_size, **self._arguments}
                try:
                    network = timm.create_model(name, **sized, **options)
                except TypeError as error:
                    # Convolutional models take any size and therefore no such argument.
                    if "img_size" not in str(error):
                        raise
                else:
                    self._arguments = sized
                    return network
            network = timm.create_model(name, **self._arguments, **options)
        except TypeError as error:
            raise RecipeError(
                f"{what}: {first_line(error)}. Correct the tower's `config`."
            ) from error
        return network

    def _published(self, name: str, what: str) -> nn.Module:
        if not name.startswith("hf-hub:"):
            # Report problems of the keys before looking for weights.
            with torch.device("meta"):
                self._built(name, what)
        folder = cache_folder(self.cache_dir) / "timm"
        for suffix in (".safetensors", ".pth", ".bin"):
            own = folder / f"{name.removeprefix('hf-hub:').replace('/', '--')}{suffix}"
            if own.is_file():
                return self._create(
                    name, what, pretrained=True, pretrained_cfg_overlay={"file": str(own)}
                )
        prepare_hub()
        try:
            return self._create(name, what, pretrained=True, cache_dir=str(folder))
        except RecipeError:
            raise
        # No network, no such file, no right to it: the remedy is the same.
        except Exception as error:
            stem = name.removeprefix("hf-hub:").replace("/", "--")
            raise unfetchable(
                what, files=f"its weights as {stem}.safetensors (or .pth, .bin)", folder=folder
            ) from error


def _run(network: Any, images: Tensor) -> tuple[Any, Any]:
    """Features before and after pooling."""
    features = network.forward_features(images)
    return features, network.forward_head(features)


def _pools(network: Any) -> bool:
    """Whether a model has one feature for an image; encoders made for language models give a map
    alone."""
    try:
        network.forward_head(None)
    except NotImplementedError:
        return False
    # Whatever else nothing at all leads to, the head is there.
    except Exception:
        return True
    return True


class TimmImage(Backbone):
    """A timm network without classifier; its feature is the pooled one."""

    modality = "image"
    input: ImageInput

    def __init__(
        self,
        network: nn.Module,
        expected: ImageInput,
        *,
        name: str,
        arguments: dict[str, Any],
        settings: str,
    ) -> None:
        super().__init__()
        self.encoder = network
        self.name, self.arguments = name, arguments
        described: Any = network
        self.input = expected
        self.settings = settings
        what = f"timm model '{name}'"
        features, pooled = try_images(network, expected.size_px, _run, what)
        self.width = width_of(pooled, what)
        self._channels = int(described.num_features)
        if (
            isinstance(features, Tensor)
            and features.ndim in (3, 4)
            and self._channels in features.shape[1:]
        ):
            self.token_width = self._channels

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        """Tokens are the cells of the last feature map, or those of a transformer, the class token
        first if it has one."""
        network: Any = self.encoder
        if not tokens or self.token_width is None:
            return Encoded(network(inputs), None)
        values = network.forward_features(inputs)
        feature = network.forward_head(values)
        prefix = getattr(network, "num_prefix_tokens", 0) if values.ndim == 3 else 0
        if values.ndim == 4:
            # Some families have their maps with the channels last.
            values = (
                values.flatten(2).transpose(1, 2)
                if values.shape[1] == self._channels
                else values.flatten(1, 2)
            )
        return Encoded(feature, Tokens.of_places(values, prefix))

    def places(self) -> Places:
        return places_of(self.encoder)

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        file = "model.safetensors"
        write_weights(self.encoder.state_dict(), folder / file)
        options = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        sizes = {key: keys[key] for key in ("image_size", "config", "positions") if keys.get(key)}
        return Export(
            "timm",
            python=(
                f"model = timm.create_model({self.name!r}{options},"
                f" checkpoint_path={str(destination / file)!r})"
            ),
            # A name with a tag also selects the tag's preprocessing.
            recipe={
                "builder": "timm",
                "model": self.name,
                "pretrained": str(destination / file),
                **sizes,
            },
            feature="model(images)",
        )


def _fix_positions(network: Any, what: str, *, trained: bool) -> None:
    """Give a vision transformer sine-cosine positions that are not trained; class and register
    tokens have zeros.

    Raises:
        RecipeError: it adds no positions of a grid, or its weights were trained with others.
    """
    table = getattr(network, "pos_embed", None)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if not isinstance(table, nn.Parameter) or table.ndim != 3 or grid is None:
        raise RecipeError(
            f"{what}: positions: sincos needs a vision transformer with learned positions. Remove"
            " it."
        )
    fixed = torch.zeros_like(table)
    prefix = table.shape[1] - grid[0] * grid[1]
    fixed[0, prefix:] = sine_cosine(table.shape[2], *grid)
    if trained and not torch.allclose(table[0, prefix:], fixed[0, prefix:], atol=1e-3):
        raise RecipeError(
            f"{what}: positions: sincos would replace the positions that its weights were trained"
            " with. Remove it, or set `pretrained: false`."
        )
    table.data.copy_(fixed)
    table.requires_grad_(False)


def places_of(network: nn.Module) -> Places:
    """Where patches of a timm network can be hidden.

    All vision transformers of timm embed patches by one class of layers, and the plain ones have a
    layer for leaving some out.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    embedding = getattr(network, "patch_embed", None)
    if not isinstance(embedding, PatchEmbed):
        return Places()
    dropping = getattr(network, "patch_drop", None)
    # Families of their own (eva) turn positions along with the patches and need to know which.
    drops = isinstance(network, VisionTransformer) and isinstance(dropping, nn.Identity)
    channels_first = not embedding.flatten and embedding.output_fmt.value == "NCHW"
    return Places(
        embedding, embedding.proj.out_channels, channels_first, dropping if drops else None
    )


def _load_file(network: nn.Module, source: str, what: str) -> None:
    path = weights_file(locate(source, what), what)
    if path.suffix == ".npz":
        check_file(path, what)
        _load_by_library(network, path, what)
        return
    described: Any = network
    classifiers = described.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state = read_weights(path, what)
    try:
        fit_weights(
            network,
            state,
            what,
            source=source,
            ignore=lambda name: name.startswith(tuple(f"{part}." for part in names)),
        )
    except WeightsError:
        # Original checkpoints of some families have other names, which timm's own reader
        # translates; its error for names that it does not know either would not help.
        with contextlib.suppress(WeightsError):
            _load_by_library(network, path, what)
            return
        raise


def _load_by_library(network: nn.Module, path: Path, what: str) -> None:
    import timm.models

    try:
        timm.models.load_checkpoint(network, str(path), strict=True, weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{what}: weights of '{path}' do not fit: {first_line(error)}. Choose the model that"
            " they were made for."
        ) from error


def _image_input(network: nn.Module, image_size: int | None) -> ImageInput:
    from timm.data import resolve_model_data_config

    settings = resolve_model_data_config(network)
    height, width = settings["input_size"][1:] if image_size is None else (image_size, image_size)
    interpolation = settings["interpolation"]
    return ImageInput(
        size_px=(int(height), int(width)),
        resize_px=math.floor(min(height, width) / settings["crop_pct"]),
        resize=RESIZING.get(settings.get("crop_mode", "center"), "shortest"),
        interpolation=(
            interpolation if interpolation in ("bicubic", "bilinear", "nearest") else "bicubic"
        ),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
