"""An image and a text tower of builder openclip as a `CLIPModel` of transformers, where they are
the transformers that CLIP consists of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Export
from vlkd_cli.builders.huggingface.dual import LogitStart
from vlkd_cli.builders.huggingface.save import save_encoder, save_tokenizer
from vlkd_cli.builders.openclip.save import CLIP_SCALE
from vlkd_cli.builders.openclip.towers import OpenClipImage, OpenClipText
from vlkd_cli.builders.tokenizers import ClipTokenizer
from vlkd_cli.preprocessing import ImageInput, standardize
from vlkd_cli.towers.tower import Tower
from vlkd_cli.towers.whole.parts import (
    Mismatch,
    encoder_of,
    insist_on_equal,
    linear_head,
    name_of,
    same_width,
    sample_images,
    sample_texts,
)

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer, Transformer, VisionTransformer
    from transformers import CLIPImageProcessor

LIBRARY = "a CLIPModel of transformers"
INTERPOLATIONS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""
_PLAIN: Mapping[str, object] = {
    "ls_init_value": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "embed_cls": False,
    "no_causal_mask": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "timm_model_name": None,
    "hf_model_name": None,
}
"""open_clip's keys at which a transformer is CLIP's."""
_POOLS = ("tok", "argmax", "eos")
State = dict[str, Tensor]


def write_hf_clip(
    image: Tower, text: Tower, start: LogitStart | None, folder: Path, destination: Path
) -> Export:
    """Write both halves, the factor on cosines, tokenizer and image processor as a folder for
    `CLIPModel.from_pretrained`. Linear heads without bias become part of the projections.

    Args:
        start: of the run's objective; None: there is none, and CLIP's is written.
        destination: where the folder will be when it is done.

    Raises:
        WeightsError: a tower is not one that CLIPModel has, or has a bias or pooler.
        UserError: transformers gives other vectors.
    """
    from transformers import CLIPConfig, CLIPModel

    width = same_width(image, text)
    vision: OpenClipImage = encoder_of(image, OpenClipImage, LIBRARY)
    words: OpenClipText = encoder_of(text, OpenClipText, LIBRARY)
    _refuse_others(image, vision.source.vision)
    _refuse_others(text, words.source.text)
    if start is not None and start.bias is not None:
        raise Mismatch(
            f"towers '{image.name}' and '{text.name}'",
            f"their objective has a bias on the logits, and {LIBRARY} has none",
            "Use --format open_clip.",
        )
    state = {
        **_vision_state(vision.encoder, linear_head(image, LIBRARY, bias=False).weight),
        **_text_state(words.encoder, linear_head(text, LIBRARY, bias=False).weight),
        "logit_scale": torch.tensor(math.log(CLIP_SCALE if start is None else start.scale)),
    }
    config = CLIPConfig(
        text_config=_text_config(words, width),
        vision_config=_vision_config(vision, image.input, width),
        projection_dim=width,
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    save_encoder(model, config, folder, tensors=state)
    save_tokenizer(words.input, folder)
    _processor(image).save_pretrained(folder)

    def vectors() -> list[tuple[Tensor, Tensor]]:
        from transformers import AutoTokenizer

        model, tokenize = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained
        images, texts = sample_images(image.input), sample_texts()
        given = tokenize(folder)(texts, padding=True, truncation=True, return_tensors="pt")
        pooled = model.vision_model(standardize(images, image.input)).pooler_output
        ended = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output
        return [
            (image.encode(images), model.visual_projection(pooled)),
            (text.encode(text.input(texts)), model.text_projection(ended)),
        ]

    insist_on_equal(f"towers '{image.name}' and '{text.name}'", folder, vectors)
    return Export(
        "CLIPModel",
        python=f"model = transformers.CLIPModel.from_pretrained({str(destination)!r})",
        recipe={"builder": "huggingface", "model": str(destination)},
        feature="model.get_image_features(...), model.get_text_features(...)",
        note=(
            "the run has no factor on cosines; logit_scale is the one that CLIP starts from."
            if start is None
            else ""
        ),
    )


def _refuse_others(tower: Tower, section: Mapping[str, object]) -> None:
    """Raises Mismatch where a half of open_clip is not CLIP's transformer."""
    odd = [
        f"{key}: {section[key]}"
        for key, usual in _PLAIN.items()
        if section.get(key, usual) not in (usual, usual or None)
    ]
    if section.get("pool_type", "tok") not in _POOLS:
        odd.append(f"pool_type: {section['pool_type']}")
    if isinstance(section.get("layers"), (list, tuple)):
        odd.append("a ResNet")
    if not isinstance(section.get("image_size", 224), int):
        odd.append(f"image_size: {section['image_size']}")
    if odd:
        raise Mismatch(
            name_of(tower), f"{LIBRARY} has CLIP's own transformers only, and it has {odd[0]}"
        )


def _vision_config(vision: OpenClipImage, expected: ImageInput, width: int) -> dict[str, object]:
    encoder, section = vision.encoder, vision.source.vision
    return {
        **_sizes(encoder, section, vision.source.quick_gelu, width),
        "num_attention_heads": encoder.transformer.resblocks[0].attn.num_heads,
        "image_size": expected.size_px[0],
        "patch_size": encoder.conv1.kernel_size[0],
    }


def _text_config(words: OpenClipText, width: int) -> dict[str, object]:
    encoder, section, tokenizer = words.encoder, words.source.text, words.input
    end = tokenizer.eot if isinstance(tokenizer, ClipTokenizer) else encoder.eos_id
    return {
        **_sizes(encoder, section, words.source.quick_gelu, width),
        "num_attention_heads": encoder.transformer.resblocks[0].attn.num_heads,
        "vocab_size": encoder.token_embedding.num_embeddings,
        "max_position_embeddings": encoder.positional_embedding.shape[0],
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _sizes(
    encoder: VisionTransformer | TextTransformer,
    section: Mapping[str, Any],
    quick_gelu: bool,
    width: int,
) -> dict[str, object]:
    block = encoder.transformer.resblocks[0]
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(encoder.transformer.resblocks),
        "hidden_act": "quick_gelu" if quick_gelu else "gelu",
        "layer_norm_eps": block.ln_1.eps,
        "projection_dim": width,
    }


def _vision_state(encoder: VisionTransformer, head: Tensor | None) -> State:
    own = encoder.state_dict()
    start = "vision_model"
    projection = own["proj"].T
    return {
        f"{start}.embeddings.class_embedding": own["class_embedding"],
        f"{start}.embeddings.patch_embedding.weight": own["conv1.weight"],
        f"{start}.embeddings.position_embedding.weight": own["positional_embedding"],
        **_norm(own, "ln_pre", f"{start}.pre_layrnorm"),
        **_norm(own, "ln_post", f"{start}.post_layernorm"),
        **dict(_blocks(encoder.transformer, f"{start}.encoder.layers")),
        "visual_projection.weight": projection if head is None else head @ projection,
    }


def _text_state(encoder: TextTransformer, head: Tensor | None) -> State:
    own = encoder.state_dict()
    start = "text_model"
    linear = isinstance(encoder.text_projection, nn.Linear)
    projection = own["text_projection.weight"] if linear else own["text_projection"].T
    return {
        f"{start}.embeddings.token_embedding.weight": own["token_embedding.weight"],
        f"{start}.embeddings.position_embedding.weight": own["positional_embedding"],
        **_norm(own, "ln_final", f"{start}.final_layer_norm"),
        **dict(_blocks(encoder.transformer, f"{start}.encoder.layers")),
        "text_projection.weight": projection if head is None else head @ projection,
    }


def _norm(own: Mapping[str, Tensor], name: str, target: str) -> State:
    return {f"{target}.{each}": own[f"{name}.{each}"] for each in ("weight", "bias")}


def _blocks(transformer: Transformer, target: str) -> Iterator[tuple[str, Tensor]]:
    """The layers under transformers' names; the joint projection of queries, keys and values is
    three there."""
    for number, block in enumerate(transformer.resblocks):
        own, here = block.state_dict(), f"{target}.{number}"
        for kind in ("weight", "bias"):
            parts = own[f"attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                yield f"{here}.self_attn.{letter}_proj.{kind}", part.clone()
            for name, source in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                yield f"{here}.{name}.{kind}", own[f"{source}.{kind}"]


def _processor(tower: Tower) -> CLIPImageProcessor:
    from transformers import CLIPImageProcessor

    expected: ImageInput = tower.input
    height, width = expected.size_px
    if expected.resize not in ("shortest", "squash"):
        raise Mismatch(name_of(tower), f"{LIBRARY} cannot resize images by `{expected.resize}`")
    sides = {"height": height, "width": width}
    shortest = expected.resize == "shortest"
    return CLIPImageProcessor(
        size={"shortest_edge": height} if shortest else sides,
        do_center_crop=shortest,
        crop_size=sides,
        resample=INTERPOLATIONS[expected.interpolation],
        image_mean=list(expected.mean),
        image_std=list(expected.std),
    )
