"""A tower: an encoder with its preprocessing, its pooler and its heads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlkd_cli.builders.adapters.attach import is_own
from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.builders.hiding import Masks
from vlkd_cli.checkpoint import Source as Checkpointed
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.distributed.sharding import divided_state
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.preprocessing import ImageInput, Inputs, Tokenizer, described_input
from vlkd_cli.recipe.address import LAYER, layer_of
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.towers.freezing import HOLDER, layer_index
from vlkd_cli.towers.frozen import Frozen
from vlkd_cli.towers.inherit import Inherited
from vlkd_cli.towers.inner import as_tokens, inner_widths, layer_names, pooled, watched
from vlkd_cli.towers.named_modules import NamedModules
from vlkd_cli.towers.outputs import (
    BACKBONE,
    HEAD,
    INPUT,
    TOKENS,
    At,
    Head,
    Output,
    Outputs,
    Wanted,
)

TOKENS_AT: dict[Masks, At] = {
    "none": "all",
    "replace": "all",
    "drop": "visible",
    "complement": "hidden",
}
"""The positions of the tokens where some are hidden, by `masks:`."""


class Tower(nn.Module):
    """An encoder as a recipe describes it: a backbone with named outputs.

    Outputs are `backbone` (its feature, pooled), `tokens` (one row for each position of a picture)
    and the heads by name; `head` means the backbone's feature if there is no head of that name. A
    backbone without trainable parameters is held in a `Frozen`, outside the module tree.

    Args:
        name: the tower's name in the recipe.
        backbone: the encoder, its `requires_grad` already set.
        pooler: how its tokens become one feature; None: the backbone's own pooled feature.
        head: short for a head called `head` over the backbone's feature.
        heads: heads by name. Parameters of the one called `head` are `head.*`, those of the others
            `heads.NAME.*`.
        masks: how hidden positions are treated, in a forward pass that names them.
        dtype: in which a frozen backbone's matrices are stored and multiplied; None: as they are.
        freeze_batch_norm_stats: the backbone's batch norms stay in eval mode: running statistics
            are used and not updated. Their weights and biases are trained all the same.

    Raises:
        ValueError: a head reads what the tower does not have.
    """

    section: TowerSpec | None = None
    """The recipe's section that builder, pooler and heads were made from; of a tower out of a run,
    the section of that run."""

    source: Checkpointed | None = None
    """The checkpoint that a tower out of a run was taken from."""

    inherited: Inherited | None = None
    """What it took from another tower at the start."""

    cut: int | None = None
    """How many of the first values its output `head` is cut to; None: it is whole."""

    passed_on: str = HEAD
    """The output that its output `head` passes on, see `at_output`."""

    positions: int | None = None
    """Of how many positions its output `head` joins the rows; None: it is one row."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        *,
        pooler: nn.Module | None = None,
        head: nn.Module | None = None,
        heads: Mapping[str, Head] | None = None,
        masks: Masks = "none",
        dtype: Literal["bf16", "fp16"] | None = None,
        freeze_batch_norm_stats: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.masks = name, masks
        self.modality: ModalityName = backbone.modality
        self.input: Any = backbone.input
        """What it expects: an ImageInput, a MeshInput, or the tokenizer of its texts, which alone
        goes to loader workers, never the weights with it."""
        source = backbone if pooler is None else pooler
        self.feature_width = int(source.width)  # type: ignore[arg-type]
        self.pooler = pooler
        every = {**({} if head is None else {HEAD: Head(head)}), **(heads or {})}
        self.head: nn.Module = every[HEAD].module if HEAD in every else nn.Identity()
        self.heads = NamedModules({key: one.module for key, one in every.items() if key != HEAD})
        self.graph = Outputs(every)
        self.graph.refuse_lost_positions(TOKENS_AT[masks])
        self._layer_of = layer_index(backbone)
        self._num_backbone_layers = max(self._layer_of.values(), default=0) + 1
        self._digest: str | None = None
        self._inner_widths: dict[str, int] = {}
        self.backbone: Backbone | Frozen = (
            backbone if _learns(backbone) else Frozen(backbone, dtype)
        )
        # Decided once: a copy that follows this tower by momentum takes no gradient either, yet its
        # batch norms work as this one's do.
        self._held = self._frozen_parts()
        self.frozen_norms = self._moving_norms() if freeze_batch_norm_stats else []
        self.hold_frozen_parts()

    def forward(
        self,
        inputs: Inputs,
        wanted: Wanted = (HEAD,),
        *,
        hidden: Tensor | None = None,
        pictures: int = 1,
    ) -> dict[str, Tensor]:
        """Outputs by name, from one run of the backbone and one of each head.

        Args:
            inputs: uint8 or standardized images `[B * V, 3, H, W]`, the V pictures of a sample one
                after another, or a TextInput.
            wanted: names of outputs, or a dict from each to its pictures (from 1, ascending).
            hidden: `[B * V, T]` bool, True for hidden positions.
            pictures: V.

        Returns:
            Rows `[N, E]` or tokens `[N, T, E]`, N being B times the pictures wanted of an output;
            if a head reads some positions only, `[N, m, E]`, or, if their number varies, `[M, E]`
            with the rows of one picture after those of another.
        """
        every = tuple(range(1, pictures + 1))
        chosen = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, every)
        needed = self.graph.needed(chosen)
        positions = None if hidden is None else Output(hidden, every)
        found = self._sources(inputs, needed, every, positions)
        self.graph.run(self._head_modules(), found, needed, positions)
        return {
            name: found[self.graph.resolved(name)].of(own).values for name, own in chosen.items()
        }

    def encode(self, inputs: Inputs, output: str = HEAD) -> Tensor:
        """One output of uint8 or standardized images `[B, 3, H, W]`, or of a TextInput; by default
        projected features `[B, width]`."""
        features: Tensor = self(inputs, (output,))[output]
        return features

    def outputs(
        self, inputs: Inputs, wanted: Collection[str], hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Several outputs by name, from one run; what `forward` gives of one picture of each
        sample.

        Args:
            hidden: `[B, T]` bool, True for hidden positions.
        """
        found: dict[str, Tensor] = self(inputs, tuple(wanted), hidden=hidden)
        return found

    def features(self, inputs: Inputs) -> Tensor:
        """Features `[B, feature_width]` before the heads."""
        return self.encode(inputs, BACKBONE)

    def project(self, features: Tensor) -> Tensor:
        """The output `head` of features: `[B, feature_width]` to `[B, width]`."""
        needed = self.graph.needed({HEAD: (1,)})
        found = {BACKBONE: Output(features)}
        if set(needed) - set(found) - set(self.graph.links):
            raise RecipeError(
                f"tower '{self.name}': head 'head' does not read the backbone's feature alone, and"
                " is not applied to features. Let another head read the tokens or the input."
            )
        self.graph.run(self._head_modules(), found, needed, None)
        return found[self.graph.resolved(HEAD)].values

    def width_of(self, output: str) -> int:
        """Width of an output's rows."""
        output = self.graph.resolved(output)
        if output == BACKBONE:
            return self.feature_width
        if output == TOKENS:
            assert self.encoder.token_width is not None, f"tower '{self.name}' has no tokens"
            return self.encoder.token_width
        if LAYER.fullmatch(output):
            if output not in self._inner_widths:
                self._inner_widths |= self._measured(output)
            return self._inner_widths[output]
        width: Any = self._head_modules()[output].width
        return int(width)

    def _measured(self, output: str) -> dict[str, int]:
        try:
            return inner_widths(self.encoder, [output])
        except RecipeError as error:
            raise RecipeError(f"tower '{self.name}': {error}. Name one of them.") from error

    @property
    def width(self) -> int:
        """Width of the output `head`."""
        return self.width_of(HEAD)

    def parts(self) -> dict[str, Head]:
        """The heads by name, connected as they are here."""
        return {
            name: Head(self._head_modules()[name], link.reads, link.at)
            for name, link in self.graph.links.items()
        }

    def _head_modules(self) -> dict[str, nn.Module]:
        return {HEAD: self.head, **self.heads}

    def _sources(
        self,
        inputs: Inputs,
        needed: Mapping[str, tuple[int, ...]],
        every: tuple[int, ...],
        hidden: Output | None,
    ) -> dict[str, Output]:
        """The outputs that heads start from: pictures, feature and tokens."""
        inputs = MODALITIES[self.modality].prepare(inputs, self.input)
        found: dict[str, Output] = {}
        if INPUT in needed:
            assert isinstance(inputs, Tensor), "heads read pictures"
            found[INPUT] = Output(inputs, every).of(needed[INPUT])
        layers = layer_names(needed)
        ran = (BACKBONE, TOKENS, *layers)
        pictures = tuple(sorted({one for name in ran for one in needed.get(name, ())}))
        if not pictures:
            return found
        if pictures != every:
            assert isinstance(inputs, Tensor), "only images have several pictures"
            inputs = Output(inputs, every).of(pictures).values
        with watched(self.encoder, {layer_of(name) for name in layers}) as seen:
            encoded = self.backbone(
                inputs,
                None if hidden is None else hidden.of(pictures).values,
                self.masks,
                tokens=TOKENS in needed or self.pooler is not None or bool(layers),
            )
        at = "all" if hidden is None else TOKENS_AT[self.masks]
        for name in layers:
            found[name] = self._layer(name, seen, encoded, pictures, at)
        if BACKBONE in needed:
            found[BACKBONE] = Output(self._pooled(encoded), pictures)
        if TOKENS in needed:
            assert encoded.tokens is not None, f"tower '{self.name}' has no tokens"
            values, split = encoded.tokens.values, encoded.tokens.prefix
            found[TOKENS] = Output(values[:, split:], pictures, at=at, prefix=values[:, :split])
        return found

    def _layer(
        self,
        name: str,
        seen: Mapping[int, Tensor],
        encoded: Encoded,
        pictures: tuple[int, ...],
        at: At,
    ) -> Output:
        """An inner layer: its tokens without class and register tokens, or one row."""
        values, own = as_tokens(seen[layer_of(name)]), encoded.tokens
        if name.endswith(".pooled"):
            if self.pooler is None or own is None or any(True for _ in self.pooler.parameters()):
                return Output(pooled(self.encoder, values, own), pictures)
            return Output(self._pooled(Encoded(None, own._replace(values=values))), pictures)
        if own is not None and own.values.shape[1] == values.shape[1]:
            # Padding of a text has no meaning, so it is the same everywhere.
            values = values * own.mask[..., None].to(values.dtype)
            values = values[:, own.prefix :]
        return Output(values, pictures, at=at)

    def _pooled(self, encoded: Encoded) -> Tensor:
        if self.pooler is None:
            assert encoded.feature is not None, f"tower '{self.name}' has no feature"
            return encoded.feature
        assert encoded.tokens is not None
        values, mask, eot, prefix = encoded.tokens
        arguments = {"prefix": prefix} if getattr(self.pooler, "takes_prefix", False) else {}
        if self._pools_patches():
            values, mask = values[:, prefix:], mask[:, prefix:]
        pooled: Tensor = self.pooler(values, mask, eot, **arguments)
        return pooled

    def _pools_patches(self) -> bool:
        """Whether the pooler leaves out an image's class and register tokens."""
        return isinstance(self.input, ImageInput) and getattr(self.pooler, "patches_only", False)

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
        """Layers for layer-wise learning rates; pooler and heads, where there are any, are one more
        than the backbone's."""
        return self._num_backbone_layers + (self.pooler is not None or bool(self.graph.links))

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
            described_input(self.input) or "None",
            repr(self.pooler) + " of patches" * self._pools_patches(),
            _tokens_of(self.input) if callable(self.input) else "",
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
        # Libraries hold some tensors under several names; here each appears once, under the first.
        saved = {name for name, parameter in self.named_parameters() if parameter.requires_grad} | {
            name for name, _ in self.named_buffers()
        }
        modules = dict(self.named_modules())
        for part in self._held:
            saved -= {f"{part}.{name}" for name, _ in modules[part].named_buffers()}
        if self.encoder.adapter_name:
            # Next to an adapter, buffers of the frozen network are as its builder gives them.
            saved -= {
                f"backbone.{name}" for name, _ in self.encoder.named_buffers() if not is_own(name)
            }
        return {name: tensor for name, tensor in self.state_dict().items() if name in saved}

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
        self.load_state_dict(divided_state(state, self), strict=False)

    def same_input(self, other: Tower) -> bool:
        """Whether another tower prepares pictures, or splits texts, as this one does."""
        if not (callable(self.input) and callable(other.input)):
            return bool(self.input == other.input)
        return _tokens_of(self.input) == _tokens_of(other.input)

    def at_width(self, width: int) -> Tower:
        """The tower with only the first values of the output `head`; it shares all its parts.

        Raises:
            RecipeError: it has fewer.
        """
        from vlkd_cli.towers.passed_on import at_width

        return at_width(self, width)

    def at_output(self, output: str) -> Tower:
        """The tower with another of its outputs as its output `head`; it shares all its parts. Rows
        of positions are one after another in one row, see `positions`.

        Raises:
            RecipeError: it has no such output, or one of a varying number of positions.
        """
        from vlkd_cli.towers.passed_on import at_output

        return at_output(self, output)

    def leave_out_heads(self, outputs: Collection[str]) -> None:
        """Remove the heads that none of these outputs needs."""
        needed = self.graph.closure(outputs)
        parts = {name: part for name, part in self.parts().items() if name in needed}
        self.head = parts[HEAD].module if HEAD in parts else nn.Identity()
        self.heads = NamedModules({key: one.module for key, one in parts.items() if key != HEAD})
        self.graph = Outputs(parts)
        modules = dict(self.named_modules())
        self._held = [name for name in self._held if name in modules]
        if self.section is not None:
            specs = {key: spec for key, spec in self.section.all_heads.items() if key in parts}
            self.section = self.section.model_copy(
                update={"head": specs.pop(HEAD, None), "heads": specs}
            )

    @property
    def reads_hidden(self) -> bool:
        """Whether its outputs depend on which positions are hidden."""
        return self.masks != "none" or self.graph.reads_hidden

    def cached(self) -> Tower:
        """A tower of the same interface, with this one's heads, whose inputs are cached `[B,
        feature_width]` rows of the output `backbone`; it has the outputs that read no other."""
        from vlkd_cli.towers.cached import CachedTower

        return CachedTower(self)

    def train(self, mode: bool = True) -> Tower:
        """Training or eval mode; parts of which nothing learns stay in eval mode, batch norms among
        them."""
        super().train(mode)
        self.hold_frozen_parts()
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

    def _moving_norms(self) -> list[str]:
        """Names of the backbone's batch norms whose running statistics training would update."""
        return [
            name
            for name, module in self.named_modules()
            if name.startswith("backbone.")
            and isinstance(module, _BatchNorm)
            and module.running_mean is not None
            and not any(name == part or name.startswith(f"{part}.") for part in self._held)
        ]

    def hold_frozen_parts(self) -> None:
        """Put the parts without trainable parameters into eval mode, and the batch norms whose
        statistics are frozen."""
        modules = dict(self.named_modules())
        for name in (*self._held, *self.frozen_norms):
            modules[name].eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tower:
        nn.Module._apply(self, fn, recurse)
        if isinstance(self.backbone, Frozen):
            self.backbone.move(fn)
        return self


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tokens_of(tokenize: Tokenizer) -> str:
    """How a tokenizer splits a text of all printable ASCII characters: distinguishes two
    tokenizers of one kind."""
    letters = "".join(map(chr, range(32, 127)))
    probes = [
        letters,
        "a photo of two dogs running over the snow",
        "Übergrößenträger 東京 naïve",
        " ".join(letters),
    ]
    return repr({name: tensor.tolist() for name, tensor in tokenize(probes).items()})
