"""Vision and text encoders of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, TypedDict

from vlkd_cli.builders.backbone import (
    Backbone,
    BuildContext,
    Builder,
    ModelInfo,
)
from vlkd_cli.builders.huggingface.configs import (
    Section,
    apply_sizes,
    load_config,
    longest_input,
    num_positions,
    scratch_config,
)
from vlkd_cli.builders.huggingface.dual import (
    DUALS,
    Half,
    Origin,
    load_whole,
    logit_start,
)
from vlkd_cli.builders.huggingface.families import family_of
from vlkd_cli.builders.huggingface.image import HuggingFaceImage, settings_of
from vlkd_cli.builders.huggingface.known import types_of
from vlkd_cli.builders.huggingface.load import load_model, load_tokenizer
from vlkd_cli.builders.huggingface.processors import at_size, load_processor
from vlkd_cli.builders.huggingface.text import HuggingFaceText
from vlkd_cli.builders.sizes import check_max_length
from vlkd_cli.builders.tokenizers import CLIP_VOCABULARY, ClipTokenizer, PretrainedTokenizer
from vlkd_cli.builders.trained_tokenizer import trained_tokenizer
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Tokenizer
from vlkd_cli.recipe.types import LibraryKeys, ModalityName, PositiveInt, TextLength

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

DEFAULT_TRAINED_VOCABULARY = 8192
MOST_RESERVED_IDS = 8


class HuggingFace(Builder):
    """Any vision or text encoder that transformers' AutoModel loads; of an encoder-decoder, the
    encoder.

    The feature of a text is the mean of the last layer over the real tokens, as sentence encoders
    have it. The feature of a picture is the one of the model's family: class token, mean of the
    patch tokens, or the pooled output (see `vlkd_cli.builders.huggingface.families`); pictures are
    prepared as the model's image processor does. The tower's `pooler:` replaces the feature.

    Args:
        model: hub id, folder, or `package:NAME` for a model inside an installed package.
        pretrained: true where `model` is given: its weights; false: the same architecture with
            random weights; or another hub id or folder to take the weights from.
        config: sizes that replace the model's own, or that make up an encoder from scratch: type
            (bert, for images vit), layers, width, heads, hidden, vocab_size, max_length, and any
            other key of the type's configuration. With fewer `layers`, the first ones of a
            pretrained model are used.
        image_size: side in pixels that an image tower sees instead of the model's own.
        tokenizer: `clip` (open_clip's byte pairs), `trained` (word pieces trained on the run's
            captions and saved in the run folder), or a hub id or folder; by default the model's
            own, and `clip` from scratch.
        max_length: longest caption in tokens; by default what the encoder takes.
        own_pooler: use the model's own pooled output, e.g. BERT's or ViT's, as the feature.
        trust: run code that comes with the model.
        cache_dir: folder for downloads; by default VLKD_CACHE or the hub's own cache.
    """

    modalities: tuple[str, ...] = ("image", "text")
    assumed_modality = "text"
    adaptable = True
    takes_halves = True
    """Whether a dual encoder gives its half, with projection, rather than one bare encoder."""
    keys_of_modality = {"image": ("image_size",), "text": ("tokenizer", "max_length")}

    def __init__(
        self,
        *,
        model: str | None = None,
        pretrained: bool | str | None = None,
        config: LibraryKeys | None = None,
        image_size: PositiveInt | None = None,
        tokenizer: str | None = None,
        max_length: TextLength | None = None,
        own_pooler: bool = False,
        trust: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.config = config or {}
        self.image_size = image_size
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.own_pooler = own_pooler
        self.trust = trust
        self.cache_dir = cache_dir

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        whole = self._dual_config()
        if whole is not None:
            return self._build_half(modality, whole)
        if modality == "image":
            return self._build_image()
        options: _Source = {"trust": self.trust, "cache_dir": self.cache_dir}
        weights = self._weights()
        # The tokenizer determines the size of the vocabulary.
        config = self._config(
            "text_config", {key: value for key, value in self.config.items() if key != "vocab_size"}
        )
        tokenizer, files = self._tokenizer(config, weights, context)
        encoder = load_model(
            weights,
            config,
            pretrained=weights is not None,
            pooling_layer=self.own_pooler,
            attention=self.attention(config, context),
            **options,
        )
        settings = json.dumps(
            [self.model, self.config, self.own_pooler], sort_keys=True, default=str
        )
        backbone = HuggingFaceText(
            encoder, config, tokenizer, own_pooler=self.own_pooler, settings=settings
        )
        backbone.files = files
        return backbone

    def _build_image(self) -> Backbone:
        options: _Source = {"trust": self.trust, "cache_dir": self.cache_dir}
        weights = self._weights()
        config = self._config("vision_config", self.config)
        if config.model_type == "vit_mae":
            # In eval mode too it would hide three quarters of every picture.
            config.mask_ratio = 0.0
        if weights is None and self.image_size is not None and hasattr(config, "image_size"):
            config.image_size = self.image_size
        family = family_of(config)
        encoder = load_model(
            weights,
            config,
            pretrained=weights is not None,
            pooling_layer=self.own_pooler or family is None or family.feature == "pooled",
            **options,
        )
        if getattr(encoder, "main_input_name", "pixel_values") != "pixel_values":
            raise RecipeError(
                f"builder 'huggingface': models of type '{config.model_type}' take no pictures."
                " Choose a vision encoder, or set `modality: text`."
            )
        processor = load_processor(self.model or weights, config, **options)
        if self.image_size is not None:
            processor = at_size(processor, self.image_size)
        return HuggingFaceImage(
            encoder,
            config,
            processor,
            own_pooler=self.own_pooler,
            settings=settings_of(self.model, self.config, self.own_pooler, self.image_size),
        )

    def _dual_config(self) -> PretrainedConfig:
        """The configuration of a dual encoder; None where the model is another."""
        if not self.takes_halves or self.model is None:
            return None
        config = load_config(self.model, trust=self.trust, cache_dir=self.cache_dir, section=None)
        return config if config.model_type in DUALS else None

    def _build_half(self, modality: ModalityName, config: PretrainedConfig) -> Backbone:
        """The half of a dual encoder of this modality, projection included."""
        if self.own_pooler:
            raise RecipeError(
                "builder 'huggingface': own_pooler: has no effect on a dual encoder, whose feature"
                " is the projected one. Remove it."
            )
        options: _Source = {"trust": self.trust, "cache_dir": self.cache_dir}
        section: Section = "vision_config" if modality == "image" else "text_config"
        own = apply_sizes(getattr(config, section), self.config)
        setattr(config, section, own)
        weights = self._weights()
        whole = load_whole(weights, config, **options)
        origin = Origin(weights, config, logit_start(whole), self.trust, self.cache_dir)
        settings = settings_of(self.model, self.config, self.image_size)
        if modality == "image":
            processor = load_processor(self.model, own, **options)
            if self.image_size is not None:
                processor = at_size(processor, self.image_size)
            encoder = Half(whole, modality, config)
            return HuggingFaceImage(encoder, own, processor, settings=settings, origin=origin)
        if self._makes_tokenizer():
            raise RecipeError(
                f"builder 'huggingface': `tokenizer: {self.tokenizer}` does not go with a dual"
                " encoder. Remove it."
            )
        tokenizer = self._tokenizer(own, weights, BuildContext())[0]
        assert isinstance(tokenizer, PretrainedTokenizer)
        tokenizer.fills = DUALS[config.model_type].padded
        named = "attention_mask" in tokenizer.tokenizer.model_input_names
        encoder = Half(whole, modality, config, masked=named or not tokenizer.fills)
        return HuggingFaceText(
            encoder, own, tokenizer, own_pooler=True, settings=settings, origin=origin
        )

    def _config(self, section: Section, sizes: Mapping[str, object]) -> PretrainedConfig:
        """The encoder's configuration with the recipe's sizes."""
        if self.model is None:
            return scratch_config(sizes, section=section)
        if "type" in sizes:
            raise RecipeError(
                "builder 'huggingface': config: `type` is the model's own. Remove it, or remove"
                " `model`."
            )
        config = load_config(
            self.model, trust=self.trust, cache_dir=self.cache_dir, section=section
        )
        return apply_sizes(config, sizes)

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        """The types that `config: {type: ...}` takes; the hub's models are too many to list."""
        modalities: tuple[ModalityName, ...] = ("image", "text")
        return [
            ModelInfo(name, "huggingface", own)
            for own in modalities
            for name in types_of(own)
            if modality in (None, own) and fnmatch(name, pattern.lower()) and not pretrained_only
        ]

    def attention(self, config: PretrainedConfig, context: BuildContext) -> str | None:
        """The attention implementation that a builder over this one needs; None: the library's
        choice."""
        return None

    def _weights(self) -> str | None:
        if isinstance(self.pretrained, str):
            return self.pretrained
        if self.model is None:
            if self.pretrained:
                raise RecipeError("builder 'huggingface': `pretrained: true` needs a `model`.")
            if not self.config:
                raise RecipeError(
                    "builder 'huggingface': set `model: ID` or `config: {layers: ..., width: ...,"
                    " heads: ...}`."
                )
            return None
        return None if self.pretrained is False else self.model

    def _makes_tokenizer(self) -> bool:
        return self.tokenizer in ("clip", "trained") or (
            self.tokenizer is None and self.model is None
        )

    def _tokenizer(
        self, config: PretrainedConfig, weights: str | None, context: BuildContext
    ) -> tuple[Tokenizer, Mapping[str, bytes]]:
        """The tokenizer, and its file where it was trained; a configuration without weights takes
        its vocabulary from it."""
        wanted = self.config.get("vocab_size")
        if self._makes_tokenizer():
            if weights is not None:
                raise RecipeError(
                    f"builder 'huggingface': `tokenizer: {self.tokenizer}` does not go with"
                    " pretrained weights. Remove it."
                )
            limit = self._limit(config, None)
            if self.tokenizer != "trained":
                size = int(wanted or CLIP_VOCABULARY)
                # In CLIP's vocabulary every number is a word, so padding gets a number of its own
                # below them: the type's usual one, as some types count positions from it.
                usual = getattr(config, "pad_token_id", None)
                pad = usual if usual is not None and 0 <= usual < MOST_RESERVED_IDS else 0
                clip = ClipTokenizer(
                    context_length=limit, vocabulary_size=size, masked=True, pad=pad, shift=pad + 1
                )
                set_vocabulary(
                    config,
                    size + pad + 1,
                    {"pad_token_id": pad, "bos_token_id": clip.eot - 1, "eos_token_id": clip.eot},
                )
                return clip, {}
            words, files = trained_tokenizer(
                context, vocabulary_size=int(wanted or DEFAULT_TRAINED_VOCABULARY)
            )
            ids = {
                "pad_token_id": words.pad_token_id,
                "bos_token_id": words.cls_token_id,
                "eos_token_id": words.sep_token_id,
            }
            set_vocabulary(config, len(words), ids)
            return PretrainedTokenizer(words, max_length=limit), files
        own = load_tokenizer(
            self.tokenizer or self.model or "", trust=self.trust, cache_dir=self.cache_dir
        )
        if wanted is not None:
            raise RecipeError(
                "builder 'huggingface': config: `vocab_size` is the tokenizer's own here. Remove"
                " it, or set `tokenizer: trained`."
            )
        if weights is None and self.tokenizer is not None:
            set_vocabulary(config, len(own), {"pad_token_id": own.pad_token_id})
        if len(own) > config.vocab_size:
            raise RecipeError(
                f"builder 'huggingface': tokenizer '{self.tokenizer}' has {len(own)} words, the"
                f" model {config.vocab_size}."
            )
        return PretrainedTokenizer(own, max_length=self._limit(config, own)), {}

    def _limit(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> int:
        """The longest text in tokens.

        Args:
            tokenizer: the model's own; None for one of ours, which marks start and end.
        """
        marks = 2 if tokenizer is None else tokenizer.num_special_tokens_to_add(pair=False)
        limit = self.max_length or longest_input(config, tokenizer)
        if self.max_length is not None:
            limit = self.max_length
        check_max_length("huggingface", limit, least=marks + 1, most=num_positions(config))
        return limit


class _Source(TypedDict):
    """How a model's files are read."""

    trust: bool
    cache_dir: str | None


def set_vocabulary(config: PretrainedConfig, size: int, special: Mapping[str, int | None]) -> None:
    """Fit a configuration's embedding table and special ids to a tokenizer."""
    config.vocab_size = size
    for key, value in special.items():
        if hasattr(config, key) and value is not None:
            setattr(config, key, value)
