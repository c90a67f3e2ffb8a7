"""The outputs of the vision encoders of transformers: which one is the feature of a picture, how
many tokens precede its patches, and which norm the tokens lack.

Measured with transformers 4.57.6 on small random models. Types that are not listed use
`pooler_output` if they have one, else the mean of their patch tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor, nn

from vlkd_cli.builders.layers import first_convolution

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Family(NamedTuple):
    """One `model_type`.

    Args:
        feature: the class token, the mean of the patch tokens, or `pooler_output`.
        prefix: number of tokens before the patches; None: as many as a square grid of patches
        leaves.
        norm: the module below the encoder that the library applies to the class token alone.
        hides: the module whose outputs are tokens with position embeddings, from which tokens can
            be dropped; "" if they can only be replaced, None if neither is possible.
    """

    feature: Literal["cls", "mean", "pooled"]
    prefix: int | None = 0
    norm: str = ""
    hides: str | None = None


_CLIP = Family("pooled", 1, "vision_model.post_layernorm", "vision_model.embeddings")
_MAP = Family("mean")
FAMILIES: dict[str, Family] = {
    # The library fills vit's pooler at random where weights have none, so the class token is read.
    "vit": Family("cls", 1, hides="embeddings"),
    "deit": Family("cls", 2, hides="embeddings"),
    "vit_msn": Family("cls", 1, hides="embeddings"),
    "vit_mae": Family("cls", 1, hides=""),
    "ijepa": Family("mean", 0, hides="embeddings"),
    "beit": Family("pooled", 1, hides=""),
    "data2vec-vision": Family("mean", 1, hides=""),
    "dinov2": Family("cls", 1, hides="embeddings"),
    "dinov2_with_registers": Family("cls", None, hides="embeddings"),
    "dinov3_vit": Family("cls", None, hides=""),
    "dinov3_convnext": Family("pooled", 1),
    "align_vision_model": Family("pooled"),
    "altclip_vision_model": _CLIP,
    "chinese_clip_vision_model": _CLIP,
    "clip_vision_model": _CLIP,
    "clipseg_vision_model": _CLIP,
    "metaclip_2_vision_model": _CLIP,
    "siglip_vision_model": Family("pooled", hides="vision_model.embeddings"),
    "siglip2_vision_model": Family("pooled"),
    "aimv2_vision_model": Family("pooled", hides="embeddings"),
    **dict.fromkeys(
        ("bit", "efficientnet", "focalnet", "hiera", "levit", "mobilenet_v1", "mobilenet_v2")
        + ("mobilevit", "regnet", "resnet", "convnext", "convnextv2"),
        Family("pooled"),
    ),
    "swin": Family("pooled", hides=""),
    "swinv2": Family("pooled", hides=""),
    **dict.fromkeys(("cvt", "poolformer", "pvt_v2", "segformer", "swiftformer"), _MAP),
}


def family_of(config: PretrainedConfig) -> Family | None:
    """The family of a configuration's type, with its registers counted; None where it is not
    listed."""
    family = FAMILIES.get(config.model_type)
    if family is not None and family.prefix is None:
        return family._replace(prefix=1 + int(config.num_register_tokens))
    return family


def as_rows(states: Tensor) -> Tensor:
    """Tokens `[B, T, D]`; the cells of a map `[B, D, H, W]` row by row."""
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def patch_embedding(encoder: nn.Module) -> nn.Conv2d | None:
    """The convolution that embeds patches: the first of the network, where its windows do not
    overlap."""
    first = first_convolution(encoder)
    if first is None or first.stride != first.kernel_size or first.groups != 1:
        return None
    return first


def inner_module(encoder: nn.Module, name: str) -> nn.Module:
    """A module of an encoder by the name that one of the library's own vision models has for it;
    halves and some versions have `vision_model` around it, once or twice."""
    while isinstance(inner := getattr(encoder, "vision_model", None), nn.Module):
        encoder = inner
    return encoder.get_submodule(name.removeprefix("vision_model."))
