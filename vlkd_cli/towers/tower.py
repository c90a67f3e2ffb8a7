"""A tower: an encoder with its preprocessing, its pooler and its head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.checkpoint import Source
from vlkd_cli.errors import CheckpointError
from vlkd_cli.preprocessing import ImageInput, TextInput, standardise
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.freezing import HOLDER, layer_index
from vlkd_cli.towers.frozen import Frozen

Tokenize = Callable[[Sequence[str]], TextInput]


class Tower(nn.Module):
    """An image or text encoder as a recipe describes it: `encode` = `project` after `features`.

    A backbone of which nothing learns is kept in a `Frozen` holder, outside the module tree.

    Args:
        name: the tower's name in the recipe.
        backbone: the encoder, its `requires_grad` already set.
        pooler: how its tokens become one feature; None: the backbone's own pooled feature.
        head: what projects the feature; None: nothing.
    """

    section: TowerSpec | None = None
    """The recipe's section that builder, pooler and head were made from; of a tower out of a run,
    the section of that run."""

    source: Source | None = None
    """The checkpoint that a tower out of a run was taken from."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        *,
        pooler: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.modality: Literal["image", "text"] = backbone.modality
        self.image_input: ImageInput | None = backbone.image_input
        self.feature_width = int(pooler.width if pooler is not None else backbone.width)  # type: ignore[arg-type]
        self.pooler = pooler
        self.head: nn.Module = head if head is not None else nn.Identity()
        self.width = int(self.head.width if head is not None else self.feature_width)  # type: ignore[arg-type]
        self._layer_of = layer_index(backbone)
        self._num_backbone_layers = max(self._layer_of.values(), default=0) + 1
        # The tokenizer alone goes to loader workers, never the weights with it.
        self._tokenize: Tokenize | None = getattr(backbone, "tokenizer", None) or (
            backbone.tokenize if self.modality == "text" else None
        )
        self._digest: str | None = None
        self.backbone: Backbone | Frozen = backbone if _learns(backbone) else Frozen(backbone)
        # Decided once: a copy that follows this tower by momentum takes no gradient either, yet its
        # batch norms work as this one's do.
        self._held = self._frozen_parts()
        self._hold_frozen_parts()

    def forward(self, inputs: Any) -> Tensor:
        """`encode`."""
        return self.encode(inputs)

    def encode(self, inputs: Any) -> Tensor:
        """Projected features `[B, width]` of uint8 or standardised images `[B, 3, H, W]`, or of a
        TextInput."""
        return self.project(self.features(inputs))

    def features(self, inputs: Any) -> Tensor:
        """Features `[B, feature_width]` before the head."""
        if self.image_input is not None:
            inputs = standardise(inputs, self.image_input)
        if self.pooler is None:
            return self.backbone(inputs)
        return self.pooler(*self.backbone.tokens(inputs))

    def project(self, features: Tensor) -> Tensor:
        """The head: `[B, feature_width]` to `[B, width]`."""
        return self.head(features)

    @property
    def tokenize(self) -> Tokenize:
        """Strings to a TextInput; picklable, touches no device. Text towers only."""
        if self._tokenize is None:
            raise TypeError(f"tower '{self.name}' takes images and has no tokenizer")
        return self._tokenize

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether nothing of the backbone learns."""
        return isinstance(self.backbone, Frozen)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of the tower learns."""
        return self.backbone_is_frozen and not _learns(self)

    @property
    def cacheable(self) -> bool:
        """Whether `features` of an input never change, so that they may be stored."""
        return self.backbone_is_frozen and (self.pooler is None or not _learns(self.pooler))

    @property
    def encoder(self) -> Backbone:
        """The backbone itself, frozen or not."""
        return self.backbone.backbone if isinstance(self.backbone, Frozen) else self.backbone

    @property
    def num_layers(self) -> int:
        """Layers for layer-wise learning rates; pooler and head, where there is one, are one more
        than the backbone's."""
        return self._num_backbone_layers + (
            self.pooler is not None or not isinstance(self.head, nn.Identity)
        )

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter by its name in `named_parameters()`, 0 at the input."""
        if parameter_name.startswith("backbone."):
            return self._layer_of[parameter_name.removeprefix("backbone.").removeprefix(HOLDER)]
        return self.num_layers - 1

    def count_parameters(self) -> tuple[int, int]:
        """Parameters in all, the frozen backbone's too, and those that learn."""
        own = sum(parameter.numel() for parameter in self.parameters())
        held = (
            sum(parameter.numel() for parameter in self.encoder.parameters())
            if self.backbone_is_frozen
            else 0
        )
        return own + held, sum(
            parameter.numel() for parameter in self.parameters() if parameter.requires_grad
        )

    def digest(self) -> str:
        """sha256 over what determines `features`: weights and settings of backbone and pooler,
        tokenizer included.

        Computed once where it cannot change, else from the weights as they are now.
        """
        if self._digest is not None:
            return self._digest
        encoder = self.encoder
        digest = hashlib.sha256()
        settings = (
            type(encoder).__name__,
            encoder.settings,
            self.modality,
            repr(self.image_input),
            repr(self.pooler),
            _tokens_of(self._tokenize),
        )
        digest.update("\0".join(settings).encode())
        for part in (encoder, self.pooler):
            for name, tensor in part.state_dict().items() if part is not None else ():
                digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        if self.cacheable:
            self._digest = digest.hexdigest()
        return digest.hexdigest()

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint needs: everything but frozen parameters and the buffers of frozen
        parts."""
        # Libraries hold some tensors in several places; here each stands once, under the first of
        # its names.
        kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad} | {
            name for name, _ in self.named_buffers()
        }
        for part in self._held:
            kept -= {f"{part}.{name}" for name, _ in self.get_submodule(part).named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in kept}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take in what `trainable_state` gave.

        Raises:
            CheckpointError: it is of another tower; the line names the first parameter that
                differs.
        """
        wanted = self.trainable_state()
        for name in [*wanted, *state]:
            if name not in state or name not in wanted or state[name].shape != wanted[name].shape:
                there = list(state[name].shape) if name in state else "missing"
                here = list(wanted[name].shape) if name in wanted else "missing"
                raise CheckpointError(
                    f"tower '{self.name}': the checkpoint does not fit: '{name}' is {there} in it"
                    f" and {here} in the recipe's tower. Resume with the recipe that the run was"
                    " started with."
                )
        self.load_state_dict(dict(state), strict=False)

    def with_stored_features(self) -> Tower:
        """A tower of the same interface, with this one's head, whose `features` takes stored `[B,
        feature_width]` rows as its inputs."""
        from vlkd_cli.towers.cached import StoredTower

        return StoredTower(self)

    def train(self, mode: bool = True) -> Tower:
        """Training or eval mode; parts of which nothing learns stay in eval mode, batch norms among
        them."""
        super().train(mode)
        self._hold_frozen_parts()
        return self

    def _frozen_parts(self) -> list[str]:
        """Names of the largest modules that have parameters none of which learns."""
        found: list[str] = []
        for name, module in self.named_modules():
            if any(name.startswith(f"{part}.") for part in found):
                continue
            if name and any(True for _ in module.parameters()) and not _learns(module):
                found.append(name)
        return found

    def _hold_frozen_parts(self) -> None:
        for name in self._held:
            self.get_submodule(name).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tower:
        super()._apply(fn, recurse)
        if isinstance(self.backbone, Frozen):
            self.backbone.move(fn)
        return self


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tokens_of(tokenize: Tokenize | None) -> str:
    """How a tokenizer splits a text that holds every printable ASCII letter: tells two tokenizers
    of one kind apart."""
    if tokenize is None:
        return ""
    letters = "".join(map(chr, range(32, 127)))
    probes = [
        letters,
        "a photo of two dogs running over the snow",
        "Übergrößenträger 東京 naïve",
        " ".join(letters),
    ]
    return repr({name: tensor.tolist() for name, tensor in tokenize(probes).items()})
