"""The half of an open_clip checkpoint that one tower needs."""

from __future__ import annotations

from torch import Tensor, nn

from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.openclip.config import Source
from vlkd_cli.builders.weight_files import check_file, read_weights
from vlkd_cli.builders.weights import fit_weights
from vlkd_cli.errors import WeightsError

TEXT_NAMES = (
    "text_projection",
    "positional_embedding",
    "token_embedding",
    "transformer",
    "ln_final",
    "cls_emb",
    "proj",
)


def load_half(encoder: nn.Module, modality: str, source: Source) -> None:
    """Load the image or text half of a checkpoint, old and new names, positions resized where the
    sizes differ.

    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    assert source.weights is not None
    what = f"openclip model '{source.name}'"
    holder = nn.Module()
    holder.add_module("visual" if modality == "image" else "text", encoder)
    if source.weights.suffix == ".npz":
        check_file(source.weights, what)
        with one_line(f"{what}: '{source.weights}'", "Replace the file.", WeightsError):
            _load_big_vision(holder, modality, source)
        return
    state = convert_state_dict(holder, _without_prefix(read_weights(source.weights, what)))
    half = select_half(state, modality)
    if modality == "image" and hasattr(encoder, "positional_embedding"):
        whole = {f"visual.{name}": tensor for name, tensor in half.items()}
        resize_pos_embed(whole, holder)
        half = {name.removeprefix("visual."): tensor for name, tensor in whole.items()}
    if modality == "image":
        _resize_trunk_positions(half, encoder)
    if modality == "text" and hasattr(encoder, "positional_embedding"):
        own = half.get("positional_embedding")
        if (
            own is not None
            and own.shape[1] == encoder.get_parameter("positional_embedding").shape[1]
        ):
            resize_text_pos_embed(half, encoder)
    # Buffers that newer versions compute themselves.
    fit_weights(
        encoder,
        half,
        what,
        source=source.origin or str(source.weights),
        ignore=lambda name: name.endswith(("position_ids", "attn_mask")),
    )


def _resize_trunk_positions(half: dict[str, Tensor], encoder: object) -> None:
    """Fit the positions of timm's network to another number of patches."""
    trunk, own = getattr(encoder, "trunk", None), half.get("trunk.pos_embed")
    wanted = getattr(trunk, "pos_embed", None)
    if trunk is None or own is None or wanted is None or own.shape == wanted.shape:
        return
    if own.ndim != 3 or own.shape[-1] != wanted.shape[-1] or not hasattr(trunk, "patch_embed"):
        return
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
    half["trunk.pos_embed"] = resample_abs_pos_embed(
        own, new_size=trunk.patch_embed.grid_size, num_prefix_tokens=prefix
    )


def select_half(state: dict[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Tensors of one tower under the tower's own names, from a checkpoint of both or of this tower
    alone."""
    prefix = "visual." if modality == "image" else "text."
    half = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    if half:
        return half
    if modality == "text":
        # CLIP's original layout has the text tower at the top level.
        half = {name: tensor for name, tensor in state.items() if name.split(".")[0] in TEXT_NAMES}
        return half or state
    return state if not any(name.startswith("text.") for name in state) else {}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in open_clip, if something else (e.g. a Lightning module) held the whole model next
    to parts of its own."""
    prefixes = {name.partition("visual.")[0] for name in state if "visual." in name}
    if len(prefixes) != 1 or "" in prefixes:
        return state
    (prefix,) = prefixes
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _load_big_vision(holder: nn.Module, modality: str, source: Source) -> None:
    from open_clip.convert import load_big_vision_weights
    from open_clip.model import _build_text_tower, _build_vision_tower

    # The reader of this format fills both towers at once, so the other one is built for the moment.
    if modality == "image":
        holder.add_module(
            "text", _build_text_tower(source.embed_dim, dict(source.text), source.quick_gelu)
        )
    else:
        holder.add_module(
            "visual", _build_vision_tower(source.embed_dim, dict(source.vision), source.quick_gelu)
        )
    holder.logit_scale, holder.logit_bias = nn.Parameter(_one()), nn.Parameter(_one())
    load_big_vision_weights(holder, str(source.weights))


def _one() -> Tensor:
    import torch

    return torch.ones([])
