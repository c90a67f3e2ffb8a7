"""Which adapter fits which encoder, checked when the recipe is read: nothing here imports torch.

The table holds what was tried, with tests/unit/builders/adapters/test_matrix.py as its record, not
what a library claims: `adapters` accepts pairs that fail at the first step or give wrong embeddings
without a word.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkd_cli import catalog
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.errors import MissingPackageError, UserError
from vlkd_cli.recipe.modality import FACTS, has_views
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.types import MODALITY_NAMES

ENCODERS: tuple[str, ...] = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "albert",
    "deberta-v2",
    "mpnet",
    "t5",
    "clip_text_model",
)
"""The `model_type` of every encoder that the library `adapters` was tried on."""

_NEVER_MPNET = "the library reaches MPNet's layers but not the inside of its attention"
_REFUSED: dict[str, dict[str, str]] = {
    "prefix_tuning": {"mpnet": _NEVER_MPNET},
    "mix_and_match": {"mpnet": _NEVER_MPNET},
    "unipelt": {"mpnet": _NEVER_MPNET},
    "mtl_lora": {"mpnet": _NEVER_MPNET},
    "prompt_tuning": {
        "clip_text_model": (
            "this encoder takes tokens only, no vectors; for openclip's own text towers use prompt:"
            " {tokens: 4}"
        ),
    },
}
_MODERNBERT = "the libraries change ModernBERT's output before an adapter has any effect"

_FUSED = {
    "bloom": "query_key_value",
    "codegen": "qkv_proj",
    "deberta": "in_proj",
    "falcon": "query_key_value",
    "gpt_neox": "query_key_value",
    "mpt": "Wqkv",
    "phi3": "qkv_proj",
}
"""The fused layer of queries, keys and values in encoders that have one."""
_NO_LINEAR_PROJECTIONS = frozenset({"fnet", "gpt2", "ibert", "openai-gpt", "squeezebert", "xlnet"})
"""Encoders whose attention has no linear layers that peft's methods could change."""
_PROJECTIONS = frozenset("qkv")
FOR_ANY_TOWER = ("lora", "dora", "vera", "ia3", "vpt")
"""Methods that towers of other builders than `adapters` take."""

# CLIP's configuration on disk describes both towers; its text tower is what a text builder loads.
_SAME_ENCODER = {"clip": "clip_text_model"}


def check(tower: Mapping[str, object]) -> list[str]:
    """Everything that is wrong with a tower's `adapter:` and `prompt:`, as "key: what is wrong and
    what to do", without torch.

    Args:
        tower: the tower's section as written in the recipe. Keys that do not fit a method's
            signature are left to the recipe's own check.
    """
    return [*_check_adapter(tower), *_check_prompt(tower)]


def is_installed() -> bool:
    """Whether the libraries that the builder needs are there, without importing them."""
    # Once imported, `adapters` has no import specification any more, so it is looked for among the
    # imported modules first.
    return all(
        sys.modules.get(package) is not None or importlib.util.find_spec(package) is not None
        for package in ("adapters", "peft")
    )


def refusal(name: str, model_type: str, *, form: str | None = None) -> str | None:
    """Why a method does not go with an encoder, or None where it does.

    Args:
        name: the method, as in the catalogue.
        model_type: the encoder's `model_type`, as in its config.json.
        form: the method's `form`, where it has several.
    """
    model_type = _SAME_ENCODER.get(model_type, model_type)
    if model_type == "modernbert":
        return (
            f"adapter.name: '{name}' is not supported on modernbert: {_MODERNBERT}. Choose another"
            " encoder."
        )
    if library_of(name) == "vlkd":
        return f"adapter.name: '{name}' is for image towers. Choose prompt_tuning."
    reason = _REFUSED.get(name, {}).get(model_type)
    if name == "bottleneck" and form == "adapter_plus" and model_type == "mpnet":
        reason = "form adapter_plus fails on MPNet; the other forms work"
    if reason is not None:
        return f"adapter.name: '{name}' does not work on {model_type} encoders: {reason}."
    if model_type not in ENCODERS and library_of(name) == "adapters":
        anywhere = [
            other
            for other in catalog.names("adapter")
            if library_of(other) == "peft" and other != "prompt_tuning"
        ]
        return (
            f"adapter.name: '{name}' is not known to work on {model_type} encoders, only on"
            f" {', '.join(ENCODERS)}. Methods for any encoder: {', '.join(anywhere)}."
        )
    return None


def library_of(name: str) -> str:
    """The library that builds a method: adapters or peft."""
    return str(catalog.load("adapter", name).library)


def needs_eager_attention(name: str, model_type: str) -> bool:
    """Whether the method is right with transformers' eager attention only.

    On DistilBERT the library adds 1 to the scores of prefix keys where the fused attention expects
    0, so padding changes an embedding.
    """
    return model_type == "distilbert" and name in ("prefix_tuning", "mix_and_match", "unipelt")


def read_config(tower: Mapping[str, Any]) -> dict[str, Any] | None:
    """The encoder's configuration where it is at hand: in the recipe, in a local folder or in the
    Hugging Face cache; else None."""
    config = tower.get("config")
    if isinstance(config, Mapping) and ("type" in config or "model_type" in config):
        return {**config, "model_type": config.get("type", config.get("model_type"))}
    for key in ("pretrained", "model"):
        model = tower.get(key)
        if (
            isinstance(model, str)
            and (found := _find_config(model, tower.get("cache_dir"))) is not None
        ):
            try:
                return dict(json.loads(found.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError, RecursionError):
                # Damaged files are the builder's to report, with the weights next to them.
                return None
    return None


def _check_adapter(tower: Mapping[str, Any]) -> list[str]:
    adapter, builder = tower.get("adapter"), tower.get("builder")
    if builder == "adapters" and not is_installed():
        return [f"builder: {MissingPackageError(repr(builder), 'adapters')}"]
    if builder == "adapters" and adapter is None and not tower.get("run"):
        return [
            f"adapter: builder 'adapters' needs one of {', '.join(catalog.names('adapter'))}, e.g."
            " adapter: {name: lora}. For the encoder alone use builder: huggingface."
        ]
    if adapter is None:
        return []
    name = str(dict(adapter).get("name"))
    if builder != "adapters":
        return _check_any_tower(tower, str(builder), name)
    if name == "vpt" or dict(adapter).get("last") is not None:
        return [
            "adapter.name: 'vpt' is for image towers. Choose prompt_tuning."
            if name == "vpt"
            else "adapter.last: has no effect with builder 'adapters'. Use train: {last: N}."
        ]
    if tower.get("train") in ("none", "head") and not tower.get("adapter_weights"):
        return [
            f"train: '{tower['train']}' would leave the adapter as it starts. Remove it, or name a"
            " trained one in adapter_weights."
        ]
    keys = {key: value for key, value in dict(adapter).items() if key != "name"}
    try:
        method = catalog.load("adapter", name)(**keys)
    except TypeError:
        return []  # Unknown keys are reported by the recipe's own check of the signature.
    except UserError as error:
        return [str(error)]
    config = read_config(tower)
    if config is None or not config.get("model_type"):
        return []
    if refused := refusal(name, str(config["model_type"]), form=getattr(method, "form", None)):
        return [refused]
    targets: Sequence[str] = (
        getattr(method, "targets", None) or getattr(method, "text_targets", ()) or ()
    )
    if refused := _refused_targets(name, str(config["model_type"]), targets):
        return [refused]
    # The text tower's own sizes, where the configuration describes two towers.
    sizes = config.get("text_config") or config
    hidden_size = next(
        (
            sizes[key]
            for key in ("hidden_size", "d_model", "dim")
            if isinstance(sizes.get(key), int)
        ),
        None,
    )
    return method.problems(hidden_size) if hidden_size else []


def _check_any_tower(tower: Mapping[str, Any], builder: str, name: str) -> list[str]:
    """What is wrong with an adapter in a tower of another builder than `adapters`."""
    if not attributes_of("builder", builder).get("adaptable"):
        return [
            f"adapter: has no effect with builder '{builder}'. Builders that take one:"
            f" {', '.join(_adaptable())}."
        ]
    if name in catalog.CATALOG["adapter"] and name not in FOR_ANY_TOWER:
        return [
            f"adapter.name: '{name}' is for Hugging Face text encoders. Set builder: adapters, or"
            f" choose one of: {', '.join(FOR_ANY_TOWER)}."
        ]
    for_towers = attributes_of("adapter", name).get("modalities", MODALITY_NAMES)
    if tower.get("modality") not in (None, *for_towers):
        return [f"adapter.name: '{name}' is for {for_towers[0]} towers. Choose lora."]
    if tower.get("train") in ("none", "head"):
        return [f"train: '{tower['train']}' would leave the adapter as it starts. Remove it."]
    if name == "vpt" and tower.get("masks", "none") != "none":
        return [
            f"masks: '{tower['masks']}' does not work with adapter 'vpt', whose tokens are"
            " inserted among the patches. Remove one of the two."
        ]
    if tower.get("prompt") is not None:
        return ["prompt: does not work with an adapter. Remove one of the two."]
    keys = {key: value for key, value in dict(tower["adapter"]).items() if key != "name"}
    try:
        catalog.load("adapter", name)(**keys)
    except TypeError:
        return []  # Unknown keys are reported by the recipe's own check of the signature.
    except UserError as error:
        return [str(error)]
    return []


def _adaptable() -> list[str]:
    """The builders whose towers take an adapter."""
    return [
        name
        for name in catalog.names("builder")
        if name == "adapters" or attributes_of("builder", name).get("adaptable")
    ]


def _refused_targets(name: str, model_type: str, targets: Sequence[str]) -> str | None:
    """Why the attention of an encoder has no such targets, or None where it may have them."""
    asked = sorted(_PROJECTIONS.intersection(targets))
    if asked and model_type in _NO_LINEAR_PROJECTIONS:
        return (
            f"adapter.name: '{name}' does not work on {model_type} encoders: their attention has no"
            " linear layers to change."
        )
    if asked and model_type in _FUSED:
        fused = _FUSED[model_type]
        return (
            f"adapter.targets: {model_type} encoders make queries, keys and values in one layer, so"
            f" there is no '{asked[0]}'. Set targets: [{fused}]."
        )
    return None


def _check_prompt(tower: Mapping[str, Any]) -> list[str]:
    train = tower.get("train")
    if tower.get("prompt") is None:
        if train == "prompt" and not tower.get("run"):
            return [
                "train: 'prompt' leaves nothing to train: the tower has no prompt. Add `prompt:"
                " {tokens: 4}`."
            ]
        return []
    if tower.get("builder") == "openclip":
        if has_views(tower.get("modality")):
            return [
                "prompt: learned prompt vectors are prepended to captions, and this tower takes"
                f" {FACTS[tower['modality']].plural}. Remove it."
            ]
        if train in ("none", "head"):
            return [
                f"prompt: would keep its random initial values with train: {train}. Set train:"
                " prompt, which trains the prompt and the head only."
            ]
        return []
    return [
        "prompt: learned prompt vectors are for text towers of builder openclip, not"
        f" '{tower.get('builder')}'. For a Hugging Face encoder use builder: adapters with adapter:"
        " {name: prompt_tuning}."
    ]


def _find_config(model: str, cache_dir: str | None) -> Path | None:
    """The config.json of a model, searched in the locations of `huggingface_load`, in its
    order."""
    if model.startswith("package:"):
        package = model.removeprefix("package:")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        roots = list(spec.submodule_search_locations or ()) if spec is not None else []
        found = sorted(
            (path for root in roots for path in Path(root).rglob("config.json")),
            key=lambda path: (len(path.parts), str(path)),
        )
        return found[0] if found else None
    cache = cache_folder(cache_dir)
    for folder in (Path(model).expanduser(), cache / "huggingface" / model):
        # Early versions of sentence-transformers saved the encoder in a subfolder.
        for path in (folder / "config.json", folder / "0_Transformer" / "config.json"):
            if path.is_file():
                return path
    if model.count("/") <= 1 and not model.startswith((".", "/", "~")):
        return _downloaded_config(
            model, str(cache / "hub") if cache_dir or os.environ.get("VLKD_CACHE") else None
        )
    return None


def _downloaded_config(hub_id: str, hub: str | None) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(hub_id, "config.json", cache_dir=hub)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
