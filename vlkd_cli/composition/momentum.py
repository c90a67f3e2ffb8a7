"""A tower that follows another by exponential moving average (MoCo, BYOL and DINO teachers)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlkd_cli.builders.hiding import Masks
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.distributed.sharding import own_slice
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Inputs
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import ModalityName, Progress, Schedulable
from vlkd_cli.towers.outputs import HEAD, Wanted
from vlkd_cli.towers.tower import TOKENS_AT, Tower


class MomentumTower(nn.Module):
    """A copy of a tower whose weights become `m * own + (1 - m) * followed` after each optimizer
    step.

    Its weights take no gradient but change, so unlike a frozen tower's they belong to the
    checkpoint. It is in eval mode even in training: no dropout, no stochastic depth. Batch norms
    alone work on the batch and have statistics of their own, unless the followed tower's are
    frozen.

    Args:
        tower: the tower it starts as a copy of.
        follows: that tower's name in the recipe.
        momentum: m, 0 to 1, a number or a schedule such as `{cosine: [0.996, 1.0]}`.
        name: its own name in the recipe.
        outputs: what is read of it; heads that none of these needs are left out. None: all.
        masks: how hidden positions are treated, independently of the followed tower.
        shuffle: permute the samples of all ranks before they are encoded and put the outputs back
            in order, so that batch norms see samples of several ranks. Without effect on one.
        seed: of those permutations.

    Raises:
        RecipeError: it cannot hide positions in this way, or cannot be shuffled.

    Source: He et al., Momentum Contrast, CVPR 2020, arXiv:1911.05722, equation 2; shuffling:
    section 3.3.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        follows: str,
        momentum: Schedulable = 0.999,
        name: str | None = None,
        outputs: Collection[str] | None = None,
        masks: Masks = "none",
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        self.tower.requires_grad_(False)
        self.tower.name, self.tower.masks = name or tower.name, masks
        if outputs is not None:
            self.tower.leave_out_heads(outputs)
        self.follows = follows
        self.momentum = momentum
        self.shuffle, self.seed = shuffle, seed
        self._refuse_impossible()

    @property
    def modality(self) -> ModalityName:
        """The followed tower's."""
        return self.tower.modality

    def width_of(self, output: str) -> int:
        """Width of an output's rows."""
        return self.tower.width_of(output)

    @property
    def width(self) -> int:
        """Width of the output `head`."""
        return self.tower.width

    @torch.no_grad()
    def forward(
        self,
        inputs: Inputs,
        wanted: Wanted = (HEAD,),
        *,
        hidden: Tensor | None = None,
        pictures: int = 1,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """What the tower's forward gives, without gradient.

        Args:
            step: of the optimizer, from 0; with the seed it decides how samples are shuffled.
        """

        def encode(inputs: Inputs, hidden: Tensor | None) -> dict[str, Tensor]:
            outputs: dict[str, Tensor] = self.tower(
                inputs, wanted, hidden=hidden, pictures=pictures
            )
            return outputs

        if not self.shuffle or world_size() == 1:
            return encode(inputs, hidden)
        assert isinstance(inputs, Tensor), "only views of images and meshes are shuffled"
        seed = (self.seed * 1_000_003 + step) % 2**63
        return _shuffled(encode, inputs, hidden, len(inputs) // pictures, seed)

    @torch.no_grad()
    def follow(self, source: Tower, progress: Progress) -> None:
        """Move towards the followed tower, parameter by parameter of the same name; once per
        optimizer step."""
        followed = dict(source.named_parameters())
        pairs = [
            (own_slice(own), own_slice(followed[name]))
            for name, own in self.tower.named_parameters()
            if own.is_floating_point()
        ]
        torch._foreach_lerp_(
            [own for own, _ in pairs],
            [other for _, other in pairs],
            1 - progress.value(self.momentum),
        )

    def cached(self) -> MomentumTower:
        """This follower on cached rows of its backbone's feature, which it shares with the followed
        tower; its heads are the same objects."""
        follower = copy.copy(self)
        follower._modules = {**self._modules, "tower": self.tower.cached()}
        return follower

    def train(self, mode: bool = True) -> MomentumTower:
        """Training or eval mode of the batch norms; everything else stays in eval mode."""
        super().train(False)
        self.training = mode
        for module in self.tower.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        self.tower.hold_frozen_parts()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, object], prefix: str, *rest: object
    ) -> None:
        # Checkpoints of former versions hold all heads, those that nothing reads too.
        own = self.state_dict(prefix=prefix, keep_vars=True)
        for name in [name for name in state_dict if name.startswith(f"{prefix}tower.head")]:
            if name not in own:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _refuse_impossible(self) -> None:
        name, backbone = self.tower.name, self.tower.encoder
        masks = self.tower.masks
        if masks != "none" and masks not in backbone.hides:
            can = ", ".join(sorted(backbone.hides)) or "none"
            raise RecipeError(
                f"tower '{name}': masks: {masks}: its encoder cannot hide positions in this way."
                f" It can: {can}."
            )
        if masks == "replace" and backbone.mask_token is None:
            raise RecipeError(
                f"tower '{name}': masks: replace needs the mask token of '{self.follows}', which"
                " has none. Set `masks: replace` there as well."
            )
        try:
            self.tower.graph.refuse_lost_positions(TOKENS_AT[masks])
        except ValueError as error:
            raise RecipeError(f"tower '{name}': {error}. Change its `masks`.") from error
        selects = any(link.at != "all" for link in self.tower.graph.links.values())
        if self.shuffle and (not FACTS[self.modality].has_views or selects):
            reads = FACTS[self.modality].plural
            what = "selects positions of masked views" if selects else f"reads {reads}"
            raise RecipeError(f"tower '{name}': shuffle: it {what}. Remove shuffle.")


def _shuffled(
    encode: Callable[[Inputs, Tensor | None], dict[str, Tensor]],
    inputs: Tensor,
    hidden: Tensor | None,
    samples: int,
    seed: int,
) -> dict[str, Tensor]:
    """Encode other samples on each rank, and give each rank the outputs of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples * world_size(), generator=generator).to(inputs.device)
    own = slice(rank() * samples, (rank() + 1) * samples)

    def exchanged(values: Tensor, rows: Tensor) -> Tensor:
        everywhere = gather_without_grad(values.unflatten(0, (samples, -1)))
        return everywhere[rows].flatten(0, 1)

    outputs = encode(
        exchanged(inputs, order[own]), None if hidden is None else exchanged(hidden, order[own])
    )
    back = order.argsort()[own]
    return {name: exchanged(values, back) for name, values in outputs.items()}
