"""Configurations of transformers' encoders: a model's own, with other sizes, or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.huggingface.folders import (
    check_model_folder,
    find_model,
    hub_cache,
    missing,
    refuse_foreign_code,
)
from vlkd_cli.builders.sizes import check_sizes, is_size
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError, WeightsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
COUNTS_FROM_PADDING = (
    "bridgetower_text_model",
    "camembert",
    "clap_text_model",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "mvp",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Types that number positions from the padding id on, as RoBERTa does, so that the first rows of
their table are never used."""
_WIDTH_AND_HEADS = ("hidden_size", "num_attention_heads")
_NAMES_OF_STAGES = ("out_features", "out_indices", "stage_names")
_FROM_DEPTHS = ("num_hidden_layers", "num_layers")
"""What configurations compute from the number of their layers."""
Section = Literal["text_config", "vision_config"]
"""Where a model with several towers has the configuration of one."""
CONFIG_NAMES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "max_length": "max_position_embeddings",
}
"""Our words for the sizes of an encoder -> transformers' own; its classes translate these
further."""


def load_config(
    model: str,
    *,
    builder: str = "huggingface",
    trust: bool = False,
    cache_dir: str | None = None,
    section: Section | None = "text_config",
) -> PretrainedConfig:
    """An encoder's configuration; of models with several towers, the tower's own section.

    Args:
        section: where a model with several towers has the one that is wanted; None: all of it.

    Raises:
        WeightsError: it is neither on disk nor can it be downloaded.
        RecipeError: it needs code from elsewhere and the recipe does not set `trust: true`.
    """
    from transformers import AutoConfig, PretrainedConfig

    source, what = (
        find_model(model, builder=builder, cache_dir=cache_dir),
        f"{builder} model '{model}'",
    )
    check_model_folder(Path(source), what)
    try:
        raw = PretrainedConfig.get_config_dict(source, cache_dir=hub_cache(cache_dir))[0]
    # Damaged files make the library's reader fail in many ways.
    except Exception as error:
        if Path(source).is_dir():
            raise WeightsError(
                f"{what}: '{source}' has no readable config.json. Put the model's files there."
            ) from error
        raise missing(what, model, builder, cache_dir, error) from error
    if not raw or not isinstance(raw, dict):
        # The library takes a missing file for an empty configuration.
        raise WeightsError(
            f"{what}: '{source}' has no readable config.json. Put the model's files there."
        )
    refuse_foreign_code(raw, what, trust=trust)
    try:
        config = AutoConfig.from_pretrained(
            source, cache_dir=hub_cache(cache_dir), trust_remote_code=trust
        )
    # Each configuration class checks its values in its own way.
    except Exception as error:
        kind = raw.get("model_type", "no model_type")
        raise RecipeError(
            f"{what}: its config.json ({kind}) does not describe a model that this version of"
            f" transformers knows ({first_line(error)}). Correct the file, or choose another model."
        ) from error
    config = (getattr(config, section, None) if section else None) or config
    if _encodes_and_decodes(type(config)):
        # A class of the encoder alone saves `false`, though the type is still the same.
        config.is_encoder_decoder = True
    for name in SIZES:
        value = getattr(config, name, 1)
        if value is not None and not is_size(value):
            raise WeightsError(
                f"{what}: config.json: {name}: expected an integer above 0, got {value!r}. Correct"
                " the file."
            )
    return config


def _encodes_and_decodes(kind: type[PretrainedConfig]) -> bool:
    """Whether models of a configuration's class have an encoder and a decoder."""
    try:
        return bool(kind().is_encoder_decoder)
    # Configurations of several models cannot be made without them.
    except Exception:
        return False


def scratch_config(
    sizes: Mapping[str, Any], *, section: Section = "text_config"
) -> PretrainedConfig:
    """A configuration from the recipe's sizes: `{type: bert, layers: 4, width: 128, heads: 4,
    vocab_size: 8192, max_length: 64}`; pictures are encoded by `type: vit` unless another is named.

    Raises:
        RecipeError: the type or a key is unknown.
    """
    from transformers import CONFIG_MAPPING

    kind = str(sizes.get("type", "bert" if section == "text_config" else "vit"))
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            "builder 'huggingface': config: transformers knows no type"
            f" '{kind}'.{did_you_mean(kind, CONFIG_MAPPING.keys())}"
        )
    return apply_sizes(
        _default_config(kind, section),
        {key: value for key, value in sizes.items() if key != "type"},
    )


def _default_config(kind: str, section: Section) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING

    encoder = "text encoder" if section == "text_config" else "image encoder"
    with one_line(
        f"builder 'huggingface': config: type '{kind}' has no {encoder} of its own",
        "Choose another `type`.",
    ):
        config = CONFIG_MAPPING[kind]()
    return getattr(config, section, None) or config


def apply_sizes(config: PretrainedConfig, sizes: Mapping[str, Any]) -> PretrainedConfig:
    """Put the recipe's sizes into a configuration.

    Raises:
        RecipeError: a key that the configuration does not have.
    """
    check_sizes("huggingface", sizes, (*CONFIG_NAMES, *CONFIG_NAMES.values(), "vocab_size"))
    changed = {CONFIG_NAMES.get(key, key): value for key, value in sizes.items()}
    if "hidden_size" in changed and hasattr(config, "intermediate_size"):
        changed.setdefault("intermediate_size", 4 * int(changed["hidden_size"]))
    heads, groups = (
        getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads")
    )
    if "num_attention_heads" in changed and groups is not None and groups == heads:
        changed.setdefault("num_key_value_heads", changed["num_attention_heads"])
    known = config.to_dict()
    staged = "depths" in known
    for key, value in changed.items():
        if staged and key == "num_hidden_layers":
            raise RecipeError(
                f"builder 'huggingface': config.layers: models of type '{config.model_type}' have"
                " stages. Set `depths`, the number of layers of each."
            )
        if not hasattr(config, key):
            known = [
                *CONFIG_NAMES,
                *(name for name in config.to_dict() if not name.startswith("_")),
            ]
            raise RecipeError(
                f"builder 'huggingface': config has no key '{key}' for type"
                f" '{config.model_type}'.{did_you_mean(key, known)}"
            )
        with one_line(f"builder 'huggingface': config.{key}", "Correct its value."):
            setattr(config, key, value)
    width, heads = (getattr(config, key, 1) for key in ("hidden_size", "num_attention_heads"))
    if isinstance(heads, int) and width % heads and set(changed) & set(_WIDTH_AND_HEADS):
        raise RecipeError(
            f"builder 'huggingface': config: {heads} heads do not divide width {width}. Set"
            " `heads`."
        )
    return _rebuilt(config) if staged or "stage_names" in known else config


def _rebuilt(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration with the values that its class computes from others."""
    values = config.to_dict()
    computed = _NAMES_OF_STAGES + (_FROM_DEPTHS if "depths" in values else ())
    values = {key: value for key, value in values.items() if key not in computed}
    with one_line("builder 'huggingface': config", "Correct its values."):
        return type(config).from_dict(values)


def num_positions(config: PretrainedConfig) -> int | None:
    """How many tokens an encoder's positions allow; None where any number is."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions < 0:
        return None
    counts = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if counts and config.model_type in COUNTS_FROM_PADDING:
        # MPNet always counts from 1, whatever its configuration has.
        positions -= (1 if config.model_type == "mpnet" else int(config.pad_token_id or 0)) + 1
    return int(positions)


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens an encoder takes: the lower of the limits of its positions and its
    tokenizer; 512 if neither has one."""
    limits = [
        limit
        for limit in (num_positions(config), getattr(tokenizer, "model_max_length", None))
        if limit and 0 < limit < 1_000_000
    ]
    return int(min(limits, default=512))
