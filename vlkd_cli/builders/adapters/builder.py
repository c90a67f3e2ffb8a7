"""Hugging Face text encoders with a parameter-efficient method: the encoder stays as it is, the
method's weights learn."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlkd_cli import catalog
from vlkd_cli.builders.adapters.attach import NAME, attach, encoder_model
from vlkd_cli.builders.adapters.files import (
    encoder_tensors,
    export_merged,
    load_adapter,
    save_adapter,
)
from vlkd_cli.builders.adapters.methods.low_rank import (
    TEXT_ALPHA,
    TEXT_RANK,
    MTLLoRA,
    PeftMethod,
)
from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.builders.adapters.methods.reft import ReFT
from vlkd_cli.builders.backbone import Backbone, BuildContext, Export, ModelInfo
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.huggingface.configs import longest_input
from vlkd_cli.builders.huggingface.save import save_encoder
from vlkd_cli.builders.huggingface.text import HuggingFaceText
from vlkd_cli.builders.trial import without_gradient
from vlkd_cli.errors import MissingPackageError, RecipeError
from vlkd_cli.preprocessing import TextInput
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import LibraryKeys, ModalityName, TextLength

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.modeling_outputs import BaseModelOutputWithPooling

ADAPTER = "adapter"
"""Folder of a method that cannot be merged, next to the encoder's files."""


class Adapters(HuggingFace):
    """A Hugging Face text encoder with the method of the tower's `adapter:`, e.g. `adapter: {name:
    lora, rank: 8}`.

    The encoder never learns; `train: all` means the method's weights and the head. Everything else
    is as with builder huggingface.

    Args:
        model: hub id, folder, or `package:NAME` for a model inside an installed package.
        pretrained: as with builder huggingface.
        config: as with builder huggingface.
        tokenizer: as with builder huggingface.
        max_length: longest caption in tokens; by default what the encoder takes, less the method's
            own positions.
        own_pooler: use the model's own pooled output, e.g. BERT's, instead of the mean over the
            real tokens.
        adapter_weights: folder of a saved adapter to start from.
        trust: run code that comes with the model.
        cache_dir: folder for downloads; by default VLKD_CACHE or the hub's own cache.
    """

    modalities = ("text",)
    takes_adapters = True
    takes_halves = False

    def __init__(
        self,
        *,
        model: str | None = None,
        pretrained: bool | str | None = None,
        config: LibraryKeys | None = None,
        tokenizer: str | None = None,
        max_length: TextLength | None = None,
        own_pooler: bool = False,
        adapter_weights: str | None = None,
        trust: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        if not adapter_rules.is_installed():
            raise MissingPackageError("builder 'adapters'", "adapters")
        super().__init__(
            model=model,
            pretrained=pretrained,
            config=config,
            tokenizer=tokenizer,
            max_length=max_length,
            own_pooler=own_pooler,
            trust=trust,
            cache_dir=cache_dir,
        )
        self.adapter_weights = adapter_weights

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        adapter = context.adapter
        if adapter is None:
            raise RecipeError(
                "builder 'adapters' needs `adapter:`, one of"
                f" {', '.join(catalog.names('adapter'))}."
            )
        method = make("adapter", adapter.name, adapter.keys)
        plain = super().build(modality, context)
        assert isinstance(plain, HuggingFaceText)
        if method.prompt_length:
            self._leave_room(plain, method.prompt_length, context.tower)
        backbone = AdaptedText(
            plain,
            method,
            section={"name": adapter.name, **all_keys(method, adapter.keys)},
        )
        backbone.files = plain.files
        if self.adapter_weights is not None:
            load_adapter(backbone, self.adapter_weights)
        _refuse_dead(backbone, f"tower '{context.tower}': adapter '{adapter.name}'")
        return backbone

    def attention(self, config: PretrainedConfig, context: BuildContext) -> str | None:
        """Eager attention where the method is wrong with the fused one. Also refuses a method that
        does not go with the encoder."""
        adapter = context.adapter
        assert adapter is not None
        method = make("adapter", adapter.name, adapter.keys)
        refused = adapter_rules.refusal(
            adapter.name, config.model_type, form=getattr(method, "form", None)
        )
        if refused is not None:
            raise RecipeError(f"tower '{context.tower}': {refused}")
        eager = adapter_rules.needs_eager_attention(adapter.name, config.model_type)
        return "eager" if eager else None

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        """The types of encoders that the methods were tried on."""
        if modality not in (None, "text") or pretrained_only:
            return []
        return [
            ModelInfo(name, "adapters", "text")
            for name in adapter_rules.ENCODERS
            if fnmatch(name, pattern.lower())
        ]

    def _leave_room(self, plain: HuggingFaceText, length: int, tower: str) -> None:
        """Shorten captions so that they and the learned positions fit into the encoder's."""
        config: PretrainedConfig = plain.encoder.config
        if getattr(config, "max_position_embeddings", None) is None:
            return
        room = longest_input(config, None) - length
        if room < 2 or (self.max_length or 0) > room:
            wanted = f"max_length {self.max_length}" if self.max_length else "a caption"
            raise RecipeError(
                f"tower '{tower}': adapter.length: {length} learned positions and"
                f" {wanted} do not fit into the encoder's {room + length} positions. Make one of"
                " them smaller."
            )
        tokenizer: Any = plain.input
        limit = "max_length" if hasattr(tokenizer, "max_length") else "context_length"
        setattr(tokenizer, limit, min(getattr(tokenizer, limit), room))


class AdaptedText(HuggingFaceText):
    """A transformers encoder with a method attached: its parameters that do not require a gradient
    are the encoder's.

    Args:
        plain: the encoder as builder huggingface makes it; it is changed in place.
        method: what is attached.
        section: the tower's `adapter:` with every key, for the file that the adapter is saved in.
    """

    method: Method | None = None
    """None until it is attached."""

    def __init__(
        self, plain: HuggingFaceText, method: Method, *, section: Mapping[str, object]
    ) -> None:
        encoder = encoder_model(plain.encoder)
        settings = json.dumps([plain.settings, section], sort_keys=True, default=str)
        super().__init__(
            encoder, plain.config, plain.input, own_pooler=plain.own_pooler, settings=settings
        )
        # As they are without the method, whose own modules would be taken for layers.
        self._layers = super().layers()
        self.section = dict(section)
        attach(encoder, method, self._words)
        self.method = method
        self.by_length = self.by_length or method.gates_over_tokens

    def layers(self) -> list[list[str]]:
        return self._layers

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        assert self.method is not None
        if self.method.merges:
            export_merged(self, folder)
            return self.exported(folder, destination, keys)._replace(adapter="merged")
        save_encoder(self.encoder, self.config, folder, tensors=encoder_tensors(self.encoder))
        save_adapter(self, folder / ADAPTER)
        plain = self.exported(folder, destination, keys)
        own = {
            "builder": "adapters",
            "adapter": self.section,
            "adapter_weights": str(destination / ADAPTER),
        }
        name = self.section["name"]
        note = (
            f"adapter '{name}' is part of the computation and cannot be merged: Python loads the"
            f" encoder as it was, without {ADAPTER}/."
        )
        return plain._replace(recipe={**plain.recipe, **own}, adapter="beside", note=note)

    def _words(self, text: str) -> list[int]:
        """Token ids of a text without the special ones."""
        own = getattr(self.input, "tokenizer", None)
        if own is not None:
            return list(own(text, add_special_tokens=False)["input_ids"])
        inputs = self.input([text])
        return [
            int(token) for token in inputs["input_ids"][0][inputs["attention_mask"][0].bool()][1:-1]
        ]

    def _run_batch(self, inputs: TextInput) -> BaseModelOutputWithPooling:
        if isinstance(self.method, ReFT) and next(self.encoder.parameters()).dtype != torch.float32:
            # QR and the library's empty edits exist in float32 only.
            raise RecipeError(
                "adapter 'reft' needs float32 weights. Train with `precision: bf16`, which casts"
                " the computation alone."
            )
        if not isinstance(self.method, MTLLoRA):
            return super()._run_batch(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        tasks = inputs.get("task_ids")
        if tasks is None:
            tasks = ids.new_full((ids.shape[0],), self.method.tasks.index(self.method.task))
        output = self.encoder(input_ids=ids, attention_mask=mask, task_ids=tasks, return_dict=True)
        if torch.is_grad_enabled():
            # Tasks that no row has get a gradient of zero rather than none, which every process of
            # a distributed run waits for.
            absent = sum(
                parameter.sum()
                for parameter in self.encoder.parameters()
                if parameter.requires_grad
            )
            output.last_hidden_state = output.last_hidden_state + 0 * absent
            if self.own_pooler:
                output.pooler_output = output.pooler_output + 0 * absent
        return output


def _refuse_dead(backbone: AdaptedText, what: str) -> None:
    """Refuse an adapter with weights that no output depends on.

    Raises:
        RecipeError: naming the first such weight.
    """

    def run() -> Tensor:
        encoded = backbone(backbone.input(["a text"]))
        parts = [encoded.feature, None if encoded.tokens is None else encoded.tokens.values]
        return torch.stack([part.sum() for part in parts if part is not None])

    dead = without_gradient(backbone, run)
    if dead:
        name = dead[0].removeprefix("encoder.").partition(f".{NAME}")[0]
        raise RecipeError(
            f"{what}: has no effect at '{name}': no output depends on its weights there, so they"
            " get no gradient. Leave that module out of the adapter's keys."
        )


def all_keys(method: Method, given: Mapping[str, object]) -> dict[str, object]:
    """A method's keys with the defaults filled in, so that a saved adapter does not depend on
    them."""
    declared = inspect.signature(type(method).__init__).parameters.values()
    keys = {
        key.name: given.get(key.name, key.default)
        for key in declared
        if key.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if isinstance(method, PeftMethod):
        usual = {"rank": TEXT_RANK, "alpha": TEXT_ALPHA, "targets": method.text_targets}
        keys |= {name: usual[name] for name in usual if name in keys and keys[name] is None}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in keys.items()
    }
