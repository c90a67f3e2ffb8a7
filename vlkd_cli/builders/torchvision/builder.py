"""Image classifiers of torchvision without their classifier."""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from vlkd_cli.builders.hiding import Places
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.places import is_local, locate, unfetchable, weights_file
from vlkd_cli.builders.torchvision.anatomy import (
    Anatomy,
    auxiliary_names,
    construct,
    dissect,
    drop_side_classifiers,
    find_tokens,
    fixes_its_size,
    open_without_memory,
    strip_classifier,
)
from vlkd_cli.builders.trial import refuse_keys, try_images, width_of
from vlkd_cli.builders.weight_files import read_weights
from vlkd_cli.builders.weights import below_prefix, fit_weights, write_weights
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import LibraryKeys, ModalityName, PositiveInt

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

NOT_FOR_TOWERS = {
    "aux_logits": "towers have no classifiers. Remove it.",
    "image_size": "set `image_size` of the tower, not of `config`.",
    "init_weights": "weights start as torchvision starts them. Remove it.",
    "num_classes": "towers have no classifier. Remove it.",
    "progress": "it changes nothing. Remove it.",
    "weights": "set `pretrained` of the tower, not of `config`.",
}
"""Arguments of torchvision's constructors that would make something else than a tower, or that the
tower has already."""


class TorchVision(Builder):
    """Any classification model of torchvision; its feature is what the classifier's last layer
    would have read.

    Args:
        model: a name of `vlkd list-models --builder torchvision`.
        pretrained: false: random weights; true: the model's best published weights; a tag such as
            IMAGENET1K_V1; or a file of weights in torchvision's names (float16 too; the classifier
            in it is dropped).
        image_size: side in pixels that the tower sees instead of the weights' own.
        config: arguments of the model's constructor, e.g. `{width_mult: 0.5}` for mobilenet_v2.
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
        cache_dir: str | None = None,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.image_size = image_size
        self.config = config or {}
        self.cache_dir = cache_dir

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        self._check_name()
        what = f"torchvision model '{self.model}'"
        refuse_keys(self.config, NOT_FOR_TOWERS, what)
        arguments = dict(self.config)
        if fixes_its_size(self.model):
            arguments.setdefault("image_size", self._image_input().size_px[0])
        anatomy = dissect(self.model, arguments)
        if self.pretrained is False:
            network = construct(self.model, arguments)
        elif isinstance(self.pretrained, str) and is_local(self.pretrained):
            network = construct(self.model, arguments, initialize=False)
            source = str(self.pretrained)
            file = weights_file(locate(source, what), what)
            self._load_file(network, anatomy, what, file, source=source)
        else:
            network = self._published(what, arguments, anatomy)
        drop_side_classifiers(network, self.model)
        strip_classifier(network, anatomy)
        return TorchVisionImage(
            network, anatomy, self._image_input(), model=self.model, arguments=arguments
        )

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        from torchvision import models

        rows = []
        for name in names() if modality in (None, "image") else []:
            tags = tuple(weight.name for weight in models.get_model_weights(name))
            if not fnmatch(name.lower(), pattern.lower()) or (pretrained_only and not tags):
                continue
            size = image_input(name).size_px[0]
            anatomy, network = open_without_memory(
                name, {"image_size": size} if fixes_its_size(name) else {}
            )
            strip_classifier(network, anatomy)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            rows.append(
                ModelInfo(name, "torchvision", "image", anatomy.width, parameters, size, tags)
            )
        return rows

    def _check_name(self) -> None:
        if self.model not in names():
            raise RecipeError(
                f"torchvision model '{self.model}' is unknown.{did_you_mean(self.model, names())} "
                "See `vlkd list-models --builder torchvision`."
            )

    def _published(self, what: str, arguments: dict[str, object], anatomy: Anatomy) -> nn.Module:
        from torchvision import models

        known = models.get_model_weights(self.model)
        tags = [weight.name for weight in known]
        tag = "DEFAULT" if self.pretrained is True else str(self.pretrained)
        if tag not in [*tags, "DEFAULT"]:
            raise RecipeError(
                f"{what} has no weights '{tag}'.{did_you_mean(tag, tags)} Known: {', '.join(tags)};"
                " or a file."
            )
        weights = known[tag]
        network = construct(self.model, arguments, initialize=False)
        file = self._downloaded(weights, f"{what}, weights '{weights.name}'")
        self._load_file(network, anatomy, what, file, source=f"{weights.name} ({file})")
        return network

    def _downloaded(self, weights: WeightsEnum, what: str) -> Path:
        """The file of published weights: in our cache folder, in torch's, or fetched into ours."""
        name = Path(weights.url).name
        folder = cache_folder(self.cache_dir) / "torchvision" / "checkpoints"
        for known in (folder / name, Path(torch.hub.get_dir()) / "checkpoints" / name):
            if known.is_file():
                return known
        # File names end in the first digits of the content's hash.
        digest = torch.hub.HASH_REGEX.search(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                weights.url, str(folder / name), digest[1] if digest else None
            )
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise unfetchable(what, files=name, folder=folder, error=error) from error
        return folder / name

    def _load_file(
        self, network: nn.Module, anatomy: Anatomy, what: str, file: Path, *, source: str
    ) -> None:
        head = f"{anatomy.classifier}."
        names = [name for name in network.state_dict() if not name.startswith(head)]
        state = below_prefix(
            {_modern_name(name): tensor for name, tensor in read_weights(file, what).items()},
            names,
            what,
            source=source,
        )
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
        classifier = network.get_submodule(anatomy.classifier)
        state |= {f"{head}{name}": tensor for name, tensor in classifier.state_dict().items()}
        if hasattr(network, "transform_input") and "transform_input" not in self.config:
            # torchvision's weights of the Inception family were trained on another standardization
            # and convert the usual one.
            network.transform_input = True  # type: ignore[assignment]
        extra = auxiliary_names(self.model)
        fit_weights(network, state, what, source=source, ignore=lambda name: name in extra)

    def _image_input(self) -> ImageInput:
        tag = (
            self.pretrained
            if isinstance(self.pretrained, str) and not is_local(self.pretrained)
            else "DEFAULT"
        )
        expected = image_input(self.model, tag)
        if self.image_size is None:
            return expected
        shorter = expected.resize_px if isinstance(expected.resize_px, int) else None
        ratio = (shorter or expected.size_px[0]) / expected.size_px[0]
        return expected._replace(
            size_px=(self.image_size, self.image_size), resize_px=round(self.image_size * ratio)
        )


class TorchVisionImage(Backbone):
    """A torchvision network whose classifier is an identity."""

    modality = "image"
    input: ImageInput

    def __init__(
        self,
        network: nn.Module,
        anatomy: Anatomy,
        expected: ImageInput,
        *,
        model: str,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoder = network
        self.width = anatomy.width
        self.input = expected
        self.model, self.arguments, self.classifier = model, arguments, anatomy.classifier
        self.settings = json.dumps([model, arguments], sort_keys=True, default=str)
        what = f"torchvision model '{model}'"
        pooled = try_images(network, expected.size_px, lambda net, images: net(images), what)
        assert width_of(pooled, what) == self.width
        self.token_width, self._token_source = find_tokens(model, arguments, expected.size_px)

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        """Tokens are the cells of the last feature map, or the tokens of a transformer."""
        if not tokens or self._token_source is None:
            return Encoded(self.encoder(inputs), None)
        caught: list[Tensor] = []
        handle = self.encoder.get_submodule(self._token_source).register_forward_hook(
            lambda module, given, output: caught.append(output)
        )
        try:
            feature = self.encoder(inputs)
        finally:
            handle.remove()
        values = caught[-1]
        if values.ndim == 3:
            return Encoded(feature, Tokens.of_places(values, prefix=1))
        return Encoded(feature, Tokens.of_places(values.flatten(2).transpose(1, 2)))

    def places(self) -> Places:
        from torchvision.models import SwinTransformer, VisionTransformer

        network: Any = self.encoder
        if isinstance(network, VisionTransformer):
            embedding, dropping = network.conv_proj, network.encoder.dropout
            return Places(embedding, embedding.out_channels, channels_first=True, dropping=dropping)
        if isinstance(network, SwinTransformer):
            return Places(network.features[0], network.features[0][0].out_channels)
        return Places()

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)

    def export(self, folder: Path, destination: Path, keys: Mapping[str, Any]) -> Export:
        file = "model.safetensors"
        write_weights(self.encoder.state_dict(), folder / file)
        arguments = dict(self.arguments)
        if hasattr(self.encoder, "transform_input"):
            # Of the Inception family: published weights set it, random ones do not.
            arguments |= {
                "aux_logits": False,
                "init_weights": False,
                "transform_input": bool(self.encoder.transform_input),
            }
        options = "".join(f", {key}={value!r}" for key, value in arguments.items())
        config = {
            key: value
            for key, value in arguments.items()
            if key not in ("aux_logits", "init_weights", "image_size")
        }
        size = {"image_size": keys["image_size"]} if keys.get("image_size") else {}
        usual = TorchVision(model=self.model, image_size=keys.get("image_size"))._image_input()
        note = (
            ""
            if usual == self.input
            else (
                f"a recipe that loads the file prepares images as {usual}, the run as {self.input}."
            )
        )
        return Export(
            "torchvision",
            python=(
                f"model = torchvision.models.get_model({self.model!r}{options}); "
                f"model.set_submodule({self.classifier!r}, torch.nn.Identity()); "
                f"model.load_state_dict(safetensors.torch.load_file({str(destination / file)!r}))"
            ),
            recipe={
                "builder": "torchvision",
                "model": self.model,
                "pretrained": str(destination / file),
                **size,
                **({"config": config} if config else {}),
            },
            feature="model(images)",
            note=note,
        )


def names() -> list[str]:
    """Classification models of torchvision."""
    from torchvision import models

    known: list[str] = models.list_models(module=models)
    return known


def image_input(model: str, tag: str = "DEFAULT") -> ImageInput:
    """What a model's published weights expect; with other weights the same is the best guess."""
    from torchvision import models

    known = models.get_model_weights(model)
    preset = known[tag if tag in known.__members__ else "DEFAULT"].transforms()
    size = int(preset.crop_size[0])
    return ImageInput(
        size_px=(size, size),
        resize_px=int(preset.resize_size[0]),
        interpolation=str(preset.interpolation.value),  # type: ignore[arg-type]
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _modern_name(name: str) -> str:
    # Old DenseNet files name norm.1 what is now called norm1.
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
