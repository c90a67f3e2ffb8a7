"""Image and text towers of open_clip, each on its own."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from vlkd_cli.builders.backbone import Backbone, BuildContext, Builder, ModelInfo
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.hub import prepare_hub
from vlkd_cli.builders.openclip.config import Source, describe, find_source
from vlkd_cli.builders.openclip.towers import OpenClipImage, OpenClipText, image_input
from vlkd_cli.builders.openclip.weights import load_half
from vlkd_cli.builders.places import unfetchable
from vlkd_cli.builders.trial import try_images, try_texts, width_of
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.recipe.types import LibraryKeys, ModalityName


class OpenCLIP(Builder):
    """An image or text tower of open_clip; only the wanted half is built.

    Args:
        model: a name of `vlkd list-models --builder openclip`, a hub id as `hf-hub:org/name`, or a
            folder with open_clip_config.json. Without it, `config` defines everything.
        pretrained: false: random weights; true: the `openai` tag if there is one, else the model's
            first; a tag; a hub id; or a file or folder of weights.
        config: sizes that replace the model's own, or that make up a model from scratch: layers,
            width, heads, embed_dim, mlp_ratio; for images also image_size and patch_size (layers as
            a list of four makes a ResNet); for texts context_length and vocab_size; and any other
            key of open_clip's own configuration.
        cache_dir: folder for downloaded weights; by default VLKD_CACHE or ~/.cache/vlkd.

    Source: open_clip 3 (mlfoundations/open_clip). Differs in cutting captions to the longest of the
    batch where the text tower is causal, which changes no feature, and in taking quick GELU from
    the weights' tag instead of warning that it differs.
    """

    adaptable = True

    def __init__(
        self,
        *,
        model: str | None = None,
        pretrained: bool | str = False,
        config: LibraryKeys | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.config = config or {}
        self.cache_dir = cache_dir

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        source = find_source(self.model, self.pretrained, self.config, modality, self.cache_dir)
        encoder = _build_half(source, modality)
        what = f"openclip model '{source.name}'"
        if source.weights is not None:
            load_half(encoder, modality, source)
        if modality == "text":
            backbone = OpenClipText(encoder, source, cache_dir=self.cache_dir)
            try_texts(backbone, backbone.input(["a"]), what)
            return backbone
        with one_line(what, "Correct its preprocess_cfg."):
            expected = image_input(encoder, source)
        pooled = try_images(encoder, expected.size_px, lambda net, images: net(images), what)
        width_of(pooled, what)
        return OpenClipImage(encoder, source, expected)

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        return [
            row
            for row in describe()
            if modality in (None, row.modality)
            and fnmatch(row.name.lower(), pattern.lower())
            and (row.pretrained or not pretrained_only)
        ]

    @classmethod
    def measured(cls, row: ModelInfo) -> ModelInfo | None:
        source = find_source(row.name, False, {}, row.modality, None)
        if row.modality == "text" and "hf_model_name" in source.text:
            # What it consists of is on the hub alone.
            return row
        with torch.device("meta"):
            half = _build_half(source, row.modality)
        return row._replace(
            width=source.embed_dim,
            parameters=sum(parameter.numel() for parameter in half.parameters()),
        )


def _build_half(source: Source, modality: str) -> nn.Module:
    # open_clip offers no public way to one half; its own CLIP, CustomTextCLIP and CoCa classes call
    # these two.
    from open_clip.model import _build_text_tower, _build_vision_tower

    build = _build_vision_tower if modality == "image" else _build_text_tower
    section = dict(source.vision if modality == "image" else source.text)
    section["output_tokens"] = False
    wanted = section.get("hf_model_name") if modality == "text" else None
    if wanted:
        prepare_hub()
    what = f"openclip model '{source.name}'"
    with one_line(what, "Correct the tower's `config`."):
        try:
            half: nn.Module = build(source.embed_dim, section, source.quick_gelu)
        except OSError as error:
            folder = cache_folder() / "hub"
            raise unfetchable(
                what, files=f"config.json of hub id '{wanted}'", folder=folder
            ) from error
        if modality == "image" and "timm_model_name" in section:
            _resize_trunk(half)
    return half


def _resize_trunk(half: Any) -> None:
    """Resize timm's network to the image size of the configuration; open_clip builds it at the
    network's default."""
    patches = getattr(half.trunk, "patch_embed", None)
    native = getattr(patches, "img_size", None)
    if native is not None and tuple(native) != tuple(half.image_size):
        half.trunk.set_input_size(img_size=tuple(half.image_size))
