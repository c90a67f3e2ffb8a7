"""Encoders, configurations and tokenizers of transformers: from a folder, an installed package or
the hub, or from scratch.

Every builder that needs one loads it through here, so that what is refused for safety and what is
said on failure are the same everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vlkd_cli.builders.hub import prepare_hub
from vlkd_cli.builders.places import is_local, locate, unfetchable
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError, WeightsError

CONFIG_NAMES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "max_length": "max_position_embeddings",
}
"""Our words for the sizes of an encoder -> transformers' own; its classes translate these
further."""


def find_model(model: str, *, builder: str = "huggingface", cache_dir: str | None = None) -> str:
    """What transformers is to load: a folder where there is one, else the hub id as it is.

    Hub ids are looked for in `CACHE/BUILDER/ORG/NAME` first, where a user without network puts the
    model's files.

    Raises:
        WeightsError: a path or package that is not there.
    """
    if model.startswith("package:") or is_local(model):
        return str(locate(model, f"{builder} model '{model}'"))
    prepare_hub()
    own = offline_folder(model, builder, cache_dir)
    return (
        str(own) if (own / "config.json").is_file() or (own / "modules.json").is_file() else model
    )


def offline_folder(model: str, builder: str, cache_dir: str | None) -> Path:
    """Where the files of a hub id are put by hand."""
    return cache_folder(cache_dir) / builder / model


def hub_cache(cache_dir: str | None) -> str | None:
    """Folder of the hub's downloads: ours where a recipe or VLKD_CACHE names one, else the one that
    transformers shares with others."""
    return (
        str(cache_folder(cache_dir) / "hub") if cache_dir or os.environ.get("VLKD_CACHE") else None
    )


def load_config(
    model: str, *, builder: str = "huggingface", trust: bool = False, cache_dir: str | None = None
) -> Any:
    """The text encoder's configuration; of models with several towers, the text tower's.

    Raises:
        WeightsError: it is neither on disk nor to be had.
        RecipeError: it asks for code from elsewhere and the recipe does not say `trust: true`.
    """
    from transformers import AutoConfig, PretrainedConfig

    source, what = (
        find_model(model, builder=builder, cache_dir=cache_dir),
        f"{builder} model '{model}'",
    )
    try:
        raw = PretrainedConfig.get_config_dict(source, cache_dir=hub_cache(cache_dir))[0]
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise WeightsError(
                f"{what}: '{source}' has no readable config.json. Put the model's files there."
            ) from error
        raise _missing(what, model, builder, cache_dir, error) from error
    if not raw:
        # The library takes a missing file for an empty configuration.
        raise WeightsError(
            f"{what}: '{source}' has no readable config.json. Put the model's files there."
        )
    refuse_foreign_code(raw, what, trust=trust)
    try:
        config = AutoConfig.from_pretrained(
            source, cache_dir=hub_cache(cache_dir), trust_remote_code=trust
        )
    except (OSError, ValueError, KeyError) as error:
        kind = raw.get("model_type", "no model_type")
        raise RecipeError(
            f"{what}: its config.json ({kind}) describes no model that this version of transformers"
            " knows."
        ) from error
    return getattr(config, "text_config", None) or config


def refuse_foreign_code(config: Mapping[str, Any], what: str, *, trust: bool) -> None:
    """Refuse a configuration that would have code fetched and run, unless the recipe trusts the
    model.

    Beside `auto_map` this is `_attn_implementation_internal`, which makes some versions of
    transformers load a kernel from the hub even where remote code is off (CVE-2026-4372); it is
    looked for in nested sections too.

    Raises:
        RecipeError: such a key is there and `trust` is false.
    """
    for key, value in config.items():
        if key in ("auto_map", "_attn_implementation_internal") and value and not trust:
            raise RecipeError(
                f"{what}: its configuration has '{key}', which runs code of the model's author. Add"
                " `trust: true` if you trust it."
            )
        if isinstance(value, Mapping) and key != "auto_map":
            refuse_foreign_code(value, what, trust=trust)


def scratch_config(sizes: Mapping[str, Any]) -> Any:
    """A configuration from the recipe's sizes: `{type: bert, layers: 4, width: 128, heads: 4,
    vocab_size: 8192, max_length: 64}`.

    Raises:
        RecipeError: the type or a key is unknown.
    """
    from transformers import CONFIG_MAPPING

    kind = str(sizes.get("type", "bert"))
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            "builder 'huggingface': config: transformers knows no type"
            f" '{kind}'.{did_you_mean(kind, CONFIG_MAPPING.keys())}"
        )
    return apply_sizes(
        CONFIG_MAPPING[kind](), {key: value for key, value in sizes.items() if key != "type"}
    )


def apply_sizes(config: Any, sizes: Mapping[str, Any]) -> Any:
    """Put the recipe's sizes into a configuration.

    Raises:
        RecipeError: a key that the configuration does not have.
    """
    changed = {CONFIG_NAMES.get(key, key): value for key, value in sizes.items()}
    if "hidden_size" in changed and hasattr(config, "intermediate_size"):
        changed.setdefault("intermediate_size", 4 * int(changed["hidden_size"]))
    for key, value in changed.items():
        if not hasattr(config, key):
            known = [
                *CONFIG_NAMES,
                *(name for name in config.to_dict() if not name.startswith("_")),
            ]
            raise RecipeError(
                f"builder 'huggingface': config has no key '{key}' for type"
                f" '{config.model_type}'.{did_you_mean(key, known)}"
            )
        setattr(config, key, value)
    width, heads = config.hidden_size, getattr(config, "num_attention_heads", 1)
    if width % heads:
        raise RecipeError(
            f"builder 'huggingface': config: {heads} heads do not divide width {width}. Set"
            " `heads`."
        )
    return config


def load_model(
    model: str | None,
    config: Any,
    *,
    pretrained: bool = True,
    pooling_layer: bool = False,
    attention: str | None = None,
    builder: str = "huggingface",
    trust: bool = False,
    cache_dir: str | None = None,
) -> nn.Module:
    """The encoder that a configuration describes, in fp32; of an encoder-decoder, the encoder
    alone.

    Args:
        model: where the weights come from.
        config: what `load_config` or `scratch_config` gave.
        pretrained: false: random weights.
        pooling_layer: keep the model's own pooler.
        attention: attention implementation, e.g. "eager"; None: the library's choice.

    Raises:
        WeightsError: weights are missing or do not fit.
    """
    import torch
    from transformers import AutoModel

    extra: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if not pretrained or model is None:

        def make(**options: Any) -> Any:
            return AutoModel.from_config(config, trust_remote_code=trust, **options, **extra)

    else:
        source = find_model(model, builder=builder, cache_dir=cache_dir)

        def make(**options: Any) -> Any:
            return _read_model(
                model,
                source,
                config,
                builder,
                cache_dir,
                dtype=torch.float32,
                trust_remote_code=trust,
                **options,
                **extra,
            )

    try:
        network = make() if pooling_layer else make(add_pooling_layer=False)
    except TypeError as error:
        if "add_pooling_layer" not in str(error):
            raise
        network = make()
    if getattr(config, "is_encoder_decoder", False):
        network = network.get_encoder()
    if not pooling_layer:
        # Models that cannot be built without their pooler keep it; nothing reads it, so it must not
        # wait for a gradient.
        for name, parameter in network.named_parameters():
            if name.startswith("pooler."):
                parameter.requires_grad_(False)
    return network.float()


def _read_model(
    model: str, source: str, config: Any, builder: str, cache_dir: str | None, **options: Any
) -> Any:
    from transformers import AutoModel

    what = f"{builder} model '{model}'"
    try:
        network, report = AutoModel.from_pretrained(
            source,
            config=config,
            cache_dir=hub_cache(cache_dir),
            output_loading_info=True,
            **options,
        )
    except OSError as error:
        if Path(source).is_dir():
            raise WeightsError(
                f"{what}: '{source}' has no readable weights. Put model.safetensors there."
            ) from error
        raise _missing(what, model, builder, cache_dir, error) from error
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = next(
            (line for line in lines if "size mismatch" in line or "shape" in line), lines[0]
        )
        raise WeightsError(f"{what}: its weights do not fit: {detail[:300]}") from error
    missing = [
        name
        for name in report["missing_keys"]
        if "pooler" not in name and not name.endswith("position_ids")
    ]
    if getattr(config, "is_encoder_decoder", False):
        # The encoder alone is kept, and some weights hold nothing else.
        missing = [name for name in missing if not name.startswith("decoder.")]
    if missing:
        shape = (
            list(network.state_dict()[missing[0]].shape)
            if missing[0] in network.state_dict()
            else ""
        )
        raise WeightsError(
            f"{what}: its weights do not fit: '{missing[0]}' {shape} is not in them. Correct"
            " `config` or choose other weights."
        )
    return network


def load_tokenizer(
    model: str, *, builder: str = "huggingface", trust: bool = False, cache_dir: str | None = None
) -> Any:
    """The model's own tokenizer, as a transformers object.

    Raises:
        WeightsError: it is neither on disk nor to be had.
    """
    from transformers import AutoTokenizer

    # The processes of the loader are forked, and the library warns and goes single-threaded when
    # that happens after its first use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    source, what = (
        find_model(model, builder=builder, cache_dir=cache_dir),
        f"{builder} model '{model}'",
    )
    try:
        return AutoTokenizer.from_pretrained(
            source, cache_dir=hub_cache(cache_dir), trust_remote_code=trust
        )
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir():
            raise WeightsError(
                f"{what}: '{source}' has no readable tokenizer. Put tokenizer.json there, or set"
                " `tokenizer`."
            ) from error
        raise _missing(what, model, builder, cache_dir, error) from error


def longest_input(config: Any, tokenizer: Any) -> int:
    """How many tokens an encoder takes: the lower of what its positions and its tokenizer allow;
    512 where neither says."""
    positions = getattr(config, "max_position_embeddings", None)
    if (
        positions is not None
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and _counts_from_padding(config)
    ):
        # MPNet counts from 1 whatever its configuration says.
        positions -= (1 if config.model_type == "mpnet" else int(config.pad_token_id)) + 1
    limits = [
        limit
        for limit in (positions, getattr(tokenizer, "model_max_length", None))
        if limit and 0 < limit < 1_000_000
    ]
    return int(min(limits, default=512))


def _counts_from_padding(config: Any) -> bool:
    # The RoBERTa family numbers positions from the padding id on, so the first of its rows are
    # never used.
    from transformers import RobertaConfig, XLMRobertaConfig

    related = (
        "roberta",
        "camembert",
        "mpnet",
        "longformer",
        "data2vec-text",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "mvp",
    )
    return isinstance(config, (RobertaConfig, XLMRobertaConfig)) or config.model_type in related


def _missing(
    what: str, model: str, builder: str, cache_dir: str | None, error: BaseException
) -> WeightsError:
    files = f"config.json, model.safetensors and tokenizer.json of hub id '{model}'"
    return unfetchable(
        what,
        files=files,
        folder=offline_folder(model, builder, cache_dir),
        error=None if "\n" in str(error) else error,
    )


def read_json(path: Path, what: str) -> Any:
    """A small JSON file of a model folder.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{what}: '{path}' cannot be read ({error}). Replace the file."
        ) from error
