"""The parts of an open_clip model and the files of its weights: names, tags, hub ids and folders
in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.builders.backbone import ModelInfo
from vlkd_cli.builders.hub import prepare_hub
from vlkd_cli.builders.huggingface.folders import (
    check_model_folder,
    read_json,
    refuse_foreign_code,
)
from vlkd_cli.builders.places import is_local, locate, unfetchable, weights_file
from vlkd_cli.builders.sizes import check_sizes
from vlkd_cli.builders.trial import refuse_keys
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError

CONFIG_FILE = "open_clip_config.json"
SIZES = (
    *("layers", "width", "heads", "head_width", "embed_dim", "image_size", "patch_size"),
    *("context_length", "vocab_size"),
)
SHORTEST_CONTEXT = 3
"""Start, one token and end."""
NOT_FOR_TOWERS = {
    "hf_model_pretrained": "set `pretrained` of the tower, not of `config`.",
    "hf_tokenizer_name": "texts are split as the model does it. Remove it.",
    "output_tokens": "towers give their tokens where something reads them. Remove it.",
    "tokenizer_kwargs": "texts are split as the model does it. Remove it.",
    "tokenizer_mode": "texts are split as the model does it. Remove it.",
    "timm_model_pretrained": "set `pretrained` of the tower, not of `config`.",
}
HUB = "hf-hub:"


class Source(NamedTuple):
    """An open_clip model: its configuration, its weights' file and how its images are prepared."""

    name: str
    embed_dim: int
    vision: dict[str, object]
    text: dict[str, Any]
    quick_gelu: bool
    preprocess: dict[str, Any]
    weights: Path | None
    origin: str
    folder: Path | None


def find_source(
    model: str | None,
    pretrained: bool | str,
    config: Mapping[str, Any],
    modality: str,
    cache_dir: str | None,
) -> Source:
    """Bring the recipe's keys together.

    Raises:
        RecipeError: the model, tag or a key of `config` is unknown.
        WeightsError: the weights are neither on disk nor to be had.
    """
    what = f"openclip model '{model}'" if model else "openclip model from scratch"
    if model is None:
        _refuse_nothing(pretrained, config)
    folder: Path | None = None
    weights: Path | None = None
    preprocess: dict[str, Any] = {}
    tag_settings: dict[str, Any] = {}
    if model is None:
        settings: dict[str, Any] = {"vision_cfg": {}, "text_cfg": {}}
    elif model.startswith(HUB) or is_local(model):
        folder = (
            _hub_folder(model, what, cache_dir) if model.startswith(HUB) else locate(model, what)
        )
        settings, preprocess = _read_folder(folder, what)
        if pretrained is True:
            weights = weights_file(folder, what)
    else:
        settings = _named(model, what)
    if model is not None and weights is None and pretrained is not False:
        weights, tag_settings = _named_weights(model, pretrained, what, cache_dir)
    elif isinstance(pretrained, str):
        weights = weights_file(locate(pretrained, what), what)
    preprocess = {
        **preprocess,
        **{key: tag_settings[key] for key in tag_settings if key in PREPROCESSING},
    }
    vision, text = dict(settings["vision_cfg"]), dict(settings["text_cfg"])
    refuse_foreign_code(text, what, trust=False)
    if (text.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise RecipeError(
            f"{what}: its text_cfg sets `trust_remote_code`, which runs code of the model's author."
            " Load the text encoder with builder 'huggingface' and `trust: true` if you trust it."
        )
    top = _overlay(
        vision if modality == "image" else text, config, modality, from_scratch=model is None
    )
    embed_dim = int(
        top.get("embed_dim")
        or settings.get("embed_dim")
        or (vision if modality == "image" else text)["width"]
    )
    # Weights must run with the activation that they were trained with, which their tag knows better
    # than the model's name.
    quick_gelu = bool(
        top.get("quick_gelu", tag_settings.get("quick_gelu", settings.get("quick_gelu", False)))
    )
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    origin = str(pretrained) if isinstance(pretrained, str) else str(weights or "")
    return Source(
        model or "from scratch",
        embed_dim,
        vision,
        text,
        quick_gelu,
        preprocess,
        weights,
        origin,
        folder,
    )


def _refuse_nothing(pretrained: bool | str, config: Mapping[str, object]) -> None:
    """A tower without a model's name needs sizes, and has no published weights."""
    if not config:
        raise RecipeError(
            "builder 'openclip': set `model: NAME` or `config: {layers: ..., width: ..., heads:"
            " ...}`."
        )
    if pretrained is True:
        raise RecipeError(
            "builder 'openclip': `pretrained: true` needs a `model`. Name one or give a file of"
            " weights."
        )


PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "size")


def _named(model: str, what: str) -> dict[str, object]:
    import open_clip

    settings: dict[str, object] | None = open_clip.get_model_config(model.replace("/", "-"))
    if settings is None:
        raise RecipeError(
            f"{what} is unknown.{did_you_mean(model, open_clip.list_models())} See `vlkd"
            " list-models --builder openclip`."
        )
    return settings


def _named_weights(
    model: str, pretrained: bool | str, what: str, cache_dir: str | None
) -> tuple[Path, dict[str, object]]:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    name = model.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is True:
        if not tags:
            raise RecipeError(
                f"{what} has no published weights. Set `pretrained: false` or give a file."
            )
        pretrained = "openai" if "openai" in tags else tags[0]
    settings = dict(get_pretrained_cfg(name, str(pretrained)))
    if settings:
        return _fetch(name, str(pretrained), settings, what, cache_dir), settings
    if is_local(str(pretrained)):
        return weights_file(locate(str(pretrained), what), what), {}
    if str(pretrained).startswith(HUB) or "/" in str(pretrained):
        folder = _hub_folder(str(pretrained), what, cache_dir)
        return weights_file(folder, what), _read_folder(folder, what)[1]
    known = f"Known: {', '.join(tags)}." if tags else "It has none; give a file of weights."
    raise RecipeError(
        f"{what} has no weights '{pretrained}'.{did_you_mean(str(pretrained), tags)} {known}"
    )


def _fetch(
    name: str, tag: str, settings: Mapping[str, object], what: str, cache_dir: str | None
) -> Path:
    from open_clip.pretrained import download_pretrained

    folder = cache_folder(cache_dir) / "openclip"
    for suffix in (".safetensors", ".bin", ".pt"):
        if (folder / f"{name}-{tag}{suffix}").is_file():
            return folder / f"{name}-{tag}{suffix}"
    prepare_hub()
    try:
        return Path(download_pretrained(dict(settings), cache_dir=str(folder)))
    # Whatever goes wrong in fetching (no network, no such file, no right to it) has the same
    # remedy.
    except Exception as error:
        origin = settings.get("hf_hub") or settings.get("url")
        files = f"the weights of '{origin}' as {name}-{tag}.safetensors (or .pt, .bin)"
        raise unfetchable(
            f"{what}, tag '{tag}'", files=files, folder=folder, error=error
        ) from error


def _hub_folder(model: str, what: str, cache_dir: str | None) -> Path:
    from open_clip.pretrained import download_pretrained_from_hf

    name = model.removeprefix(HUB)
    folder = cache_folder(cache_dir) / "openclip" / name
    if (folder / CONFIG_FILE).is_file():
        return folder
    downloads = str(cache_folder(cache_dir) / "openclip")
    prepare_hub()
    try:
        settings = Path(
            download_pretrained_from_hf(name, filename=CONFIG_FILE, cache_dir=downloads)
        )
        download_pretrained_from_hf(name, cache_dir=downloads)
    except Exception as error:
        raise unfetchable(
            what, files=f"{CONFIG_FILE} and the weights of hub id '{name}'", folder=folder
        ) from error
    return settings.parent


def _read_folder(folder: Path, what: str) -> tuple[dict[str, object], dict[str, object]]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise RecipeError(
            f"{what}: '{folder}' has no {CONFIG_FILE}. Name a model and give the folder's weights"
            " as `pretrained`."
        )
    check_model_folder(folder, what)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            refuse_foreign_code(_mapping(read_json(folder / name, what)), what, trust=False)
    content = _mapping(read_json(file, what))
    settings = _mapping(content.get("model_cfg", content))
    for name in ("vision_cfg", "text_cfg"):
        if not isinstance(settings.get(name), dict):
            raise RecipeError(
                f"{what}: '{file}' is not a configuration of open_clip: it has no {name}. Replace"
                " the file."
            )
    return settings, _mapping(content.get("preprocess_cfg"))


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _overlay(
    section: dict[str, Any], config: Mapping[str, Any], modality: str, *, from_scratch: bool
) -> dict[str, Any]:
    """Put the recipe's `config` into a section of open_clip's; returns the keys that belong above
    the sections."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    schema = CLIPVisionCfg if modality == "image" else CLIPTextCfg
    above = {"embed_dim", "quick_gelu"}
    known = {field.name for field in fields(schema)} | above | {"heads"}
    for key in config:
        if key not in known:
            raise RecipeError(
                f"builder 'openclip': config has no key '{key}' for {modality}"
                f" towers.{did_you_mean(key, known)}"
            )
    refuse_keys(config, NOT_FOR_TOWERS, "builder 'openclip'")
    check_sizes(
        "openclip",
        {key: value for key, value in config.items() if not isinstance(value, (list, tuple))},
        SIZES,
    )
    if int(config.get("context_length", SHORTEST_CONTEXT)) < SHORTEST_CONTEXT:
        raise RecipeError(
            f"builder 'openclip': config.context_length: {config['context_length']} leaves no room"
            f" for a text. Choose at least {SHORTEST_CONTEXT}."
        )
    own = {key: value for key, value in config.items() if key not in above}
    if modality == "image":
        heads = own.pop("heads", None)
        width = int(own.get("width", section.get("width", 768)))
        if heads is not None:
            if width % int(heads):
                raise RecipeError(
                    f"builder 'openclip': config: {heads} heads do not divide width {width}."
                )
            own["head_width"] = width // int(heads)
    section.update(own)
    if from_scratch:
        defaults = {field.name: field.default for field in fields(schema)}
        for key in ("width", "layers"):
            section.setdefault(key, defaults[key])
    heads = section.get("heads", 8)
    if (
        modality == "text"
        and "hf_model_name" not in section
        and int(section.get("width", 512)) % int(heads)
    ):
        raise RecipeError(
            f"builder 'openclip': config: {heads} heads do not divide width {section['width']}. Set"
            " `heads`."
        )
    return {key: config[key] for key in above if key in config}


def describe() -> list[ModelInfo]:
    """Every model of open_clip, one row per tower, from the configurations alone."""
    import open_clip

    rows = []
    for name in open_clip.list_models():
        settings = open_clip.get_model_config(name)
        size = settings["vision_cfg"].get("image_size", 224)
        size = size if isinstance(size, int) else size[0]
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        rows.append(ModelInfo(name, "openclip", "image", settings["embed_dim"], None, size, tags))
        rows.append(ModelInfo(name, "openclip", "text", settings["embed_dim"], None, None, tags))
    return rows
