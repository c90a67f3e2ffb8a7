"""open_clip's encoders as backbones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, Encoded, Export, Tokens
from vlkd_cli.builders.hiding import Places
from vlkd_cli.builders.hub import prepare_hub
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.openclip.blocks import pooled, quicken, reads_one_token
from vlkd_cli.builders.openclip.config import Source
from vlkd_cli.builders.openclip.save import PROMPT, save_half
from vlkd_cli.builders.places import is_local, unfetchable
from vlkd_cli.builders.timm.builder import places_of
from vlkd_cli.builders.tokenizers import CLIP_VOCABULARY, ClipTokenizer, PaddedTokenizer
from vlkd_cli.builders.weights import write_weights
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.preprocessing import ImageInput, TextInput

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
HOLDER = "encoder."
LAST_IMAGE_PARTS = ("ln_post", "proj", "attn_pool", "attn_pool_contrastive", "attnpool", "head")
LAST_TEXT_PARTS = ("ln_final", "text_projection", "cls_emb", "proj", "pooler")


class OpenClipImage(Backbone):
    """An image tower of open_clip; the pooled feature is the one that its contrastive loss
    compared, projection included."""

    modality = "image"
    input: ImageInput

    def __init__(self, encoder: nn.Module, source: Source, expected: ImageInput) -> None:
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.transformer import VisionTransformer

        self.encoder: Any = encoder
        self.source = source
        quicken(encoder)
        self.width = source.embed_dim
        self.input = expected
        self.settings = json.dumps(
            [source.embed_dim, source.vision, source.quick_gelu], sort_keys=True, default=str
        )
        if isinstance(encoder, VisionTransformer):
            self.kind, self.token_width = "vit", encoder.conv1.out_channels
        elif isinstance(encoder, ModifiedResNet):
            self.kind, self.token_width = "resnet", encoder.attnpool.k_proj.in_features
        else:
            self.kind, self.token_width = "timm", int(_any(encoder).trunk.num_features)

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        """Tokens are the patches after the last norm, the class token first where there is one;
        for ResNets, the places of the last map."""
        encoder = self.encoder
        if self.kind == "vit":
            return self._run_transformer(inputs, tokens)
        if not tokens:
            return Encoded(encoder(inputs), None)
        if self.kind == "resnet":
            values = encoder.layer2(encoder.layer1(encoder.stem(inputs)))
            values = encoder.layer4(encoder.layer3(values))
            feature, prefix = encoder.attnpool(values), 0
        else:
            values = encoder.trunk.forward_features(inputs)
            feature = encoder.head(encoder.trunk.forward_head(values))
            prefix = getattr(encoder.trunk, "num_prefix_tokens", 0) if values.ndim == 3 else 0
        return Encoded(feature, Tokens.of_places(as_tokens(values, self.token_width or 0), prefix))

    def _run_transformer(self, inputs: Tensor, tokens: bool) -> Encoded:
        encoder = self.encoder
        embedded = encoder._embeds(inputs)
        if (
            not tokens
            and encoder.attn_pool is None
            and encoder.pool_type == "tok"
            and reads_one_token(encoder.transformer)
        ):
            feature = encoder.ln_post(pooled(encoder.transformer, embedded))
            return Encoded(feature if encoder.proj is None else feature @ encoder.proj, None)
        values = encoder.transformer(embedded)
        feature = encoder._pool(values)[0]
        feature = feature if encoder.proj is None else feature @ encoder.proj
        if not tokens:
            return Encoded(feature, None)
        # With attentional pooling the last norm follows the pooling and has its width.
        normed = values if encoder.attn_pool is not None else encoder.ln_post(values)
        return Encoded(feature, Tokens.of_places(normed, prefix=1))

    def places(self) -> Places:
        encoder = self.encoder
        if self.kind == "resnet":
            return Places()
        if self.kind == "timm":
            return places_of(encoder.trunk)
        # A dropout of patches that works on its own in training would hide others in addition.
        is_free = isinstance(encoder.patch_dropout, nn.Identity)
        return Places(
            encoder.conv1,
            encoder.conv1.out_channels,
            channels_first=True,
            dropping=encoder.patch_dropout if is_free else None,
        )

    def layers(self) -> list[list[str]]:
        return _with_last(find_layers(self.encoder), self.encoder, LAST_IMAGE_PARTS)

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        state = self.encoder.state_dict()
        return save_half(
            "visual", self.source, state, folder, destination, preprocessing=self.preprocessing
        )

    @property
    def preprocessing(self) -> dict[str, object]:
        """How images are prepared, in open_clip's words."""
        expected = self.input
        return {
            "size": expected.size_px,
            "mean": expected.mean,
            "std": expected.std,
            "interpolation": expected.interpolation,
            "resize_mode": expected.resize,
        }


class OpenClipText(Backbone):
    """A text tower of open_clip; the pooled feature is the one that its contrastive loss compared,
    projection included."""

    modality = "text"
    input: Any
    takes_prompts = True

    def __init__(self, encoder: nn.Module, source: Source, *, cache_dir: str | None) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.encoder: Any = encoder
        self.source = source
        quicken(encoder)
        self.width = source.embed_dim
        self.is_transformer = isinstance(encoder, TextTransformer)
        plain = (
            not any(source.text.get(key) for key in ("hf_tokenizer_name", "hf_model_name"))
            and "siglip" not in source.name.lower()
        )
        # In a causal tower no position sees what follows it, so padding after the end token never
        # reaches the pooled one.
        self.trims = (
            self.is_transformer
            and plain
            and self.encoder.attn_mask is not None
            and self.encoder.cls_emb is None
        ) and self.encoder.pool_type in ("argmax", "eos", "first")
        self.input = _tokenizer(source, plain, self.trims, cache_dir)
        self.token_width = int(
            _any(encoder).width if self.is_transformer else _any(encoder).config.hidden_size
        )
        self.marks_end = self.is_transformer and isinstance(self.input, ClipTokenizer)
        self.settings = json.dumps(
            [source.embed_dim, source.text, source.quick_gelu], sort_keys=True, default=str
        )

    def run(self, inputs: TextInput, *, tokens: bool) -> Encoded:
        """Tokens are those after the last norm; real ones reach from the start to the end token."""
        ids = inputs["input_ids"]
        if not self.is_transformer:
            return self._run_huggingface(ids)
        if self.trims:
            feature, values = self._run_trimmed(ids, tokens)
        elif not tokens:
            feature, values = self.encoder(ids), None
        else:
            found = self.encoder.forward_intermediates(
                ids, indices=1, normalize_intermediates=True, output_fmt="NLC"
            )
            feature, values = found["text_features"], found["text_intermediates"][-1]
        if values is None:
            return Encoded(feature, None)
        if not self.marks_end:
            return Encoded(feature, Tokens(values, ids != self.encoder.pad_id))
        end = (ids == self.input.eot).int().argmax(1)
        mask = torch.arange(ids.shape[1], device=ids.device)[None] <= end[:, None]
        return Encoded(feature, Tokens(values, mask, end))

    def _run_huggingface(self, ids: Tensor) -> Encoded:
        encoder, mask = self.encoder, ids != self.encoder.config.pad_token_id
        output = encoder.transformer(input_ids=ids, attention_mask=mask.long())
        feature = encoder.proj(encoder.pooler(output, mask.long()))
        return Encoded(feature, Tokens(output.last_hidden_state, mask))

    def _run_trimmed(self, ids: Tensor, tokens: bool) -> tuple[Tensor, Tensor | None]:
        """Feature and normed tokens `[B, T, D]` of a causal tower, at any length up to the
        context's."""
        encoder = self.encoder
        embedded, mask = self._embedded(ids)
        if encoder.pool_type == "first":
            positions = None
        else:
            positions = (
                ids if encoder.pool_type == "argmax" else (ids == encoder.eos_id).int()
            ).argmax(dim=-1)
        values = None
        if not tokens and reads_one_token(encoder.transformer):
            feature = encoder.ln_final(pooled(encoder.transformer, embedded, positions, mask))
        else:
            values = encoder.ln_final(encoder.transformer(embedded, attn_mask=mask))
            feature = (
                values[:, 0]
                if positions is None
                else values[torch.arange(ids.shape[0], device=ids.device), positions]
            )
        projection = encoder.text_projection
        if isinstance(projection, nn.Linear):
            feature = projection(feature)
        elif projection is not None:
            feature = feature @ projection
        return feature, values if tokens else None

    def layers(self) -> list[list[str]]:
        return _with_last(find_layers(self.encoder), self.encoder, LAST_TEXT_PARTS)

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        state = self.encoder.state_dict()
        prompts = {
            name.removeprefix(HOLDER): state.pop(name.removeprefix(HOLDER))
            for name in self.prompted
        }
        written = save_half("text", self.source, state, folder, destination, preprocessing={})
        tokenizer: Any = self.input
        if isinstance(tokenizer, PaddedTokenizer):
            tokenizer.tokenizer.tokenizer.save_pretrained(folder)
        notes = []
        if prompts:
            write_weights(prompts, folder / PROMPT)
            notes.append(
                f"open_clip cannot hold the learned prompt, which is stored in {PROMPT}; `run:"
                " ...` brings it along."
            )
        if self.marks_end and tokenizer.vocabulary_size < CLIP_VOCABULARY:
            notes.append(
                f"the vocabulary ends at {tokenizer.vocabulary_size}, which vlkd's tokenizer obeys"
                " and open_clip's does not."
            )
        return written._replace(note=" ".join(notes))

    def _embedded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        encoder, length = self.encoder, ids.shape[1]
        dtype = encoder.transformer.get_cast_dtype()
        tokens = encoder.token_embedding(ids).to(dtype) + encoder.positional_embedding[:length].to(
            dtype
        )
        return tokens, encoder.attn_mask[:length, :length]


def _any(module: nn.Module) -> Any:
    """The module with the attributes that its library gives it."""
    return module


def as_tokens(values: Tensor, width: int) -> Tensor:
    """Feature maps of either memory order, or tokens, as `[B, T, width]`."""
    if values.ndim == 3:
        return values
    channels_first = values.shape[1] == width
    return values.flatten(2).transpose(1, 2) if channels_first else values.flatten(1, 2)


def _tokenizer(source: Source, plain: bool, trims: bool, cache_dir: str | None) -> Any:
    if plain:
        own = source.text.get("tokenizer_kwargs") or {}
        if not set(own) - {"clean"}:
            return ClipTokenizer(
                context_length=source.text.get("context_length", 77),
                vocabulary_size=source.text.get("vocab_size", CLIP_VOCABULARY),
                trim=trims,
                clean=own.get("clean", "lower"),
            )
    import open_clip

    prepare_hub()
    # A download holds the weights alone; a folder put together by hand may bring its tokenizer.
    own_files = source.folder is not None and any(
        (source.folder / file).is_file() for file in TOKENIZER_FILES
    )
    name = f"local-dir:{source.folder}" if own_files or is_local(source.name) else source.name
    try:
        return PaddedTokenizer(
            open_clip.get_tokenizer(name, cache_dir=str(cache_folder(cache_dir) / "openclip"))
        )
    # transformers raises many kinds of error where a tokenizer cannot be read; the remedy is one.
    except Exception as error:
        wanted = source.text.get("hf_tokenizer_name", source.name)
        raise unfetchable(
            f"openclip model '{source.name}'",
            files=f"the tokenizer of hub id '{wanted}'",
            folder=cache_folder(cache_dir) / "openclip",
            error=error,
        ) from error


def image_input(encoder: nn.Module, source: Source) -> ImageInput:
    """How a model's images are prepared.

    Raises:
        ValueError, TypeError: its preprocess_cfg does not hold the numbers.
    """
    size = getattr(encoder, "image_size", source.preprocess.get("size", 224))
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    given = {
        key: source.preprocess[key]
        for key in ("mean", "std", "interpolation")
        if key in source.preprocess
    }
    mode = source.preprocess.get("resize_mode", "shortest")
    expected = ImageInput(
        size_px=(height, width),
        resize=mode if mode in ("shortest", "squash", "longest") else "shortest",
    )
    for key in ("mean", "std"):
        if key in given:
            red, green, blue = (float(value) for value in given[key])
            given[key] = (red, green, blue)
    if given.get("interpolation") not in (None, "bicubic", "bilinear", "nearest"):
        del given["interpolation"]
    return expected._replace(**given)


def _with_last(
    layers: list[list[str]], encoder: nn.Module, parts: Sequence[str]
) -> list[list[str]]:
    """Parts that follow the last layer, such as the projection, are counted with it, wherever they
    are registered."""
    names = {name.split(".")[0] for name, _ in encoder.named_parameters()}
    named = {prefix for layer in layers for prefix in layer}
    extra = [part for part in parts if part in names and part not in named]
    if not layers:
        return [extra] if extra else []
    layers_left = [[prefix for prefix in layer if prefix not in parts] for layer in layers]
    layers_left = [layer for layer in layers_left if layer]
    tail = [prefix for layer in layers for prefix in layer if prefix in parts] + extra
    return [*layers_left[:-1], [*layers_left[-1], *tail]]
