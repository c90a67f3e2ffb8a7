"""An image and a text tower of builder openclip as one model of open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlkd_cli.builders.backbone import Export
from vlkd_cli.builders.huggingface.dual import LogitStart
from vlkd_cli.builders.openclip.save import save_whole
from vlkd_cli.builders.openclip.towers import OpenClipImage, OpenClipText
from vlkd_cli.builders.tokenizers import CLIP_VOCABULARY, ClipTokenizer
from vlkd_cli.preprocessing import standardize
from vlkd_cli.towers.tower import Tower
from vlkd_cli.towers.whole.parts import (
    Linear,
    Mismatch,
    encoder_of,
    insist_on_equal,
    linear_head,
    name_of,
    same_width,
    sample_images,
    sample_texts,
)

LIBRARY = "a model of open_clip"
State = dict[str, Tensor]


def write_open_clip(
    image: Tower, text: Tower, start: LogitStart | None, folder: Path, destination: Path
) -> Export:
    """Write both halves, the factor on cosines and the bias as a folder for `local-dir:`, which
    `open_clip.create_model_and_transforms` and clip_benchmark load. Linear heads become part of the
    projections.

    Args:
        start: of the run's objective; None: there is none, and CLIP's is written.
        destination: where the folder will be when it is done.

    Raises:
        WeightsError: a tower does not fit into such a model.
        UserError: open_clip gives other vectors.
    """
    width = same_width(image, text)
    vision, words = _encoders(image, text)
    sections = {"vision_cfg": dict(vision.source.vision), "text_cfg": dict(words.source.text)}
    states = {
        "visual": _visual(image, vision, sections["vision_cfg"]),
        "text": _textual(text, words, sections["text_cfg"]),
    }
    how = save_whole(
        vision,
        words,
        states,
        {"embed_dim": width, **sections, "quick_gelu": vision.source.quick_gelu},
        start,
        folder,
        destination,
    )

    def vectors() -> list[tuple[Tensor, Tensor]]:
        import open_clip

        model = open_clip.create_model(f"local-dir:{folder}").eval()
        tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
        images, texts = sample_images(image.input), sample_texts()
        return [
            (image.encode(images), model.encode_image(standardize(images, image.input))),
            (text.encode(text.input(texts)), model.encode_text(tokenize(texts))),
        ]

    insist_on_equal(f"towers '{image.name}' and '{text.name}'", folder, vectors)
    return how


def _encoders(image: Tower, text: Tower) -> tuple[OpenClipImage, OpenClipText]:
    vision: OpenClipImage = encoder_of(image, OpenClipImage, LIBRARY)
    words: OpenClipText = encoder_of(text, OpenClipText, LIBRARY)
    if vision.source.quick_gelu != words.source.quick_gelu:
        raise Mismatch(
            f"towers '{image.name}' and '{text.name}'",
            f"one of them has `quick_gelu`, and {LIBRARY} has it in both halves or in none",
        )
    tokenizer = words.input
    if isinstance(tokenizer, ClipTokenizer) and tokenizer.vocabulary_size < CLIP_VOCABULARY:
        raise Mismatch(
            name_of(text),
            f"its vocabulary ends at {tokenizer.vocabulary_size}, which open_clip's tokenizer does"
            " not obey",
        )
    return vision, words


def _visual(tower: Tower, encoder: OpenClipImage, section: dict[str, Any]) -> State:
    """The state of the image half, its head in its projection."""
    state: State = encoder.encoder.state_dict()
    head = linear_head(tower, LIBRARY, bias=encoder.kind != "vit")
    if head.weight is None:
        return state
    if encoder.kind == "vit":
        state["proj"] = head.of(state["proj"].T)[0].T
    elif encoder.kind == "resnet":
        _put(state, "attnpool.c_proj", head)
    else:
        if section.get("timm_proj", "linear") != "linear":
            raise Mismatch(
                name_of(tower), "its model has no linear projection to merge a head into"
            )
        _put(state, "head.proj", head)
        section["timm_proj_bias"] = "head.proj.bias" in state
    return state


def _textual(tower: Tower, encoder: OpenClipText, section: dict[str, Any]) -> State:
    """The state of the text half, its head in its projection."""
    state: State = encoder.encoder.state_dict()
    head = linear_head(tower, LIBRARY, bias=encoder.is_transformer)
    if head.weight is None:
        return state
    if not encoder.is_transformer:
        if not isinstance(encoder.encoder.proj, nn.Linear):
            raise Mismatch(
                name_of(tower), "its model has no linear projection to merge a head into"
            )
        _put(state, "proj", head)
        return state
    if isinstance(encoder.encoder.text_projection, nn.Linear):
        _put(state, "text_projection", head)
    else:
        own = state.pop("text_projection", None)
        weight, bias = head.of(None if own is None else own.T)
        if bias is None:
            state["text_projection"] = weight.T
        else:
            state |= {"text_projection.weight": weight, "text_projection.bias": bias}
    section["proj_type"] = "linear"
    section["proj_bias"] = "text_projection.bias" in state
    return state


def _put(state: State, name: str, head: Linear) -> None:
    """A head behind the linear layer of this name."""
    weight, bias = head.of(state[f"{name}.weight"], state.get(f"{name}.bias"))
    state[f"{name}.weight"] = weight
    if bias is not None:
        state[f"{name}.bias"] = bias
