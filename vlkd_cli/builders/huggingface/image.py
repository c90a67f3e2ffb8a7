"""Vision encoders of transformers as backbones."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlkd_cli import console
from vlkd_cli.builders.backbone import OTHER_PROCESSOR, Encoded, Tokens
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.hiding import Places
from vlkd_cli.builders.huggingface.dual import Origin, inner_encoder, keys_of
from vlkd_cli.builders.huggingface.families import (
    Family,
    as_rows,
    family_of,
    inner_module,
    patch_embedding,
)
from vlkd_cli.builders.huggingface.library_encoder import LibraryEncoder
from vlkd_cli.builders.huggingface.processors import read_processor
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.padding import probing
from vlkd_cli.builders.trial import try_images, width_of
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig
    from transformers.modeling_outputs import BaseModelOutputWithPooling

UNLISTED = Family("pooled", None)
"""What is tried for a type that no family is known of."""
_READS = {
    "cls": "last_hidden_state[:, 0]",
    "mean": "the mean of last_hidden_state over the patches",
    "pooled": "pooler_output",
}


class HuggingFaceImage(LibraryEncoder):
    """A vision encoder of transformers; its feature is what its family's checkpoints were trained
    to have there (see `families`), its tokens are normed where the library has a norm for them.

    Args:
        encoder: takes `pixel_values`, returns an output with `last_hidden_state`.
        config: its configuration.
        processor: its image processor.
        own_pooler: the feature is `pooler_output` whatever the family.
        origin: the dual encoder that it is a half of.
    """

    modality = "image"
    input: ImageInput
    exported_keys = ("own_pooler", "trust")

    def __init__(
        self,
        encoder: nn.Module,
        config: PretrainedConfig,
        processor: BaseImageProcessor,
        *,
        own_pooler: bool = False,
        settings: str = "",
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.origin = encoder, origin
        self.config, self.processor = config, processor
        self.own_pooler, self.settings = own_pooler, settings
        what = f"huggingface model of type '{config.model_type}'"
        self.input = read_processor(processor, what)
        known = family_of(config)
        self.family = known or UNLISTED
        if own_pooler or origin is not None:
            self.family = self.family._replace(feature="pooled")
        size = getattr(config, "image_size", None)
        self.native = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        self.interpolates = "interpolate_pos_encoding" in keys_of(inner_encoder(encoder))
        states, pooled = try_images(encoder, self.input.size_px, self._measured, what)
        if pooled is None and self.family.feature == "pooled":
            if own_pooler:
                raise RecipeError(f"{what}: it has no pooler of its own. Remove `own_pooler`.")
            self.family = self.family._replace(feature="mean")
        if self.family.prefix is None:
            self.family = self.family._replace(prefix=self._unplaced(states))
        if known is None:
            console.warn(
                f"{what} is not known to vlkd; its feature is {_READS[self.family.feature]}."
            )
        self.token_width = int(states.shape[-1])
        self.width = width_of(pooled, what) if self.family.feature == "pooled" else self.token_width
        self._hold_unread(what)

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        """Tokens are those of the last layer, class and register tokens first."""
        output = self._output(self.encoder, inputs)
        states = as_rows(output.last_hidden_state)
        if self.family.norm:
            states = inner_module(self.encoder, self.family.norm)(states)
        if self.family.feature == "cls":
            feature = states[:, 0]
        elif self.family.feature == "mean":
            feature = states[:, self.family.prefix or 0 :].mean(1)
        else:
            feature = output.pooler_output.flatten(1)
        return Encoded(feature, Tokens.of_places(states, self.family.prefix or 0))

    def places(self) -> Places:
        embedding = patch_embedding(self.encoder)
        if embedding is None or self.family.hides is None:
            return Places()
        dropping = inner_module(self.encoder, self.family.hides) if self.family.hides else None
        return Places(embedding, embedding.out_channels, channels_first=True, dropping=dropping)

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)

    @property
    def reads(self) -> str:
        return _READS[self.family.feature]

    def library_pixels(self, picture: np.ndarray) -> Tensor | None:
        if hasattr(self.processor, "max_num_patches"):
            # It gives patches on a grid of each picture's own shape; vlkd has a square one.
            return None
        kind = type(self.processor).__name__
        if kind == "ChineseCLIPImageProcessor" and dict(self.processor.size).get("shortest_edge"):
            # This slow class of transformers 4 fails on every picture; it is read as its fast one.
            return None
        with one_line(f"its image processor ({kind}) does not take a picture", OTHER_PROCESSOR):
            given = self.processor(Image.fromarray(picture), return_tensors="pt")
            pixels: Tensor = given["pixel_values"][0].float()
        return pixels

    def save_input(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def _output(self, encoder: nn.Module, images: Tensor) -> BaseModelOutputWithPooling:
        """What the library gives for standardized pictures `[B, 3, H, W]`."""
        kind = self.config.model_type
        extra: dict[str, Tensor | bool] = {}
        if kind == "siglip2_vision_model":
            return encoder(**patchified(images, self.config.patch_size))
        if self.interpolates and tuple(images.shape[-2:]) != self.native:
            extra["interpolate_pos_encoding"] = True
        if kind == "vit_mae":
            # It shuffles patches by the order of this noise, and hides none (mask_ratio 0).
            patch = self.config.patch_size
            places = (images.shape[-2] // patch) * (images.shape[-1] // patch)
            order = torch.arange(places, device=images.device, dtype=images.dtype)
            extra["noise"] = order.expand(images.shape[0], -1)
        return encoder(pixel_values=images, **extra)

    def _measured(self, encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self._output(encoder, images)
        pooled = getattr(output, "pooler_output", None)
        return as_rows(output.last_hidden_state), None if pooled is None else pooled.flatten(1)

    def _unplaced(self, states: Tensor) -> int:
        """How many of an unlisted type's tokens are more than a grid of patches holds."""
        patch = getattr(self.config, "patch_size", None)
        if not isinstance(patch, int):
            return 0
        height, width = self.input.size_px
        extra = int(states.shape[1]) - (height // patch) * (width // patch)
        return extra if 0 <= extra < states.shape[1] else 0

    def _hold_unread(self, what: str) -> None:
        """Take the parameters that neither feature nor tokens depend on out of training: processes
        of a distributed run would wait for their gradients."""
        parameters = list(self.parameters())
        try:
            with torch.device("meta"):
                memo: dict[int, Tensor] = {
                    id(each): each.detach().to("meta").requires_grad_() for each in parameters
                }
                leaves = list(memo.values())
                memo |= {id(tensor): tensor.to("meta") for tensor in self.buffers()}
                grads = _gradients(copy.deepcopy(self, memo), leaves)
        # What a library holds outside of parameters and buffers is not copied; a real run has it.
        except Exception:
            with one_line(f"{what}: cannot be trained", "Choose another model."):
                grads = _gradients(self, parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is None:
                parameter.requires_grad_(False)
        # Some networks cache what they computed in eval mode until they are trained.
        self.train()


def _gradients(backbone: HuggingFaceImage, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of all outputs for one picture with respect to the parameters."""
    with probing(backbone), torch.enable_grad():
        picture = torch.zeros(1, 3, *backbone.input.size_px, device=leaves[0].device)
        feature, tokens = backbone.run(picture, tokens=True)
        assert feature is not None and tokens is not None
        total = feature.sum() + tokens.values.sum()
        return list(torch.autograd.grad(total, leaves, allow_unused=True))


def patchified(images: Tensor, patch_px: int) -> dict[str, Tensor]:
    """The inputs of a siglip2 encoder: the patches of standardized pictures `[B, 3, H, W]` row by
    row, channels last within a patch, with their grid."""
    rows, columns = images.shape[-2] // patch_px, images.shape[-1] // patch_px
    cut = images[..., : rows * patch_px, : columns * patch_px]
    cut = cut.reshape(images.shape[0], 3, rows, patch_px, columns, patch_px)
    patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shape = torch.tensor([[rows, columns]], device=images.device)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], device=images.device).int(),
        "spatial_shapes": shape.expand(images.shape[0], -1),
    }


def settings_of(*values: object) -> str:
    """What of a recipe's keys determines an encoder's output, as text."""
    return json.dumps(values, sort_keys=True, default=str)
