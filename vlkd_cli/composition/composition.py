"""Towers wired by distillers: what is trained. Knows which tower sees what and what is compared
with what; not optimizers or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import Batch
from vlkd_cli.distillers.distiller import Distiller, Widths, counts_rows
from vlkd_cli.recipe.address import Address, Arrow, Side
from vlkd_cli.recipe.types import Progress, Schedulable
from vlkd_cli.towers.tower import Tower


class StepOutput(NamedTuple):
    """The weighted sum of the terms, with its graph, and each term by name, without."""

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(NamedTuple):
    """One distiller with the arrow that it is drawn along."""

    name: str
    distiller: Distiller
    arrow: Arrow
    weight: Schedulable = 1.0


class Composition(nn.Module):
    """All towers of a recipe and the objectives between them.

    Frozen towers are held outside the module tree: they are no parameters of this module, are not
    in its state dict, not moved by DDP, and always run without gradient. `towers` holds the ones
    that learn; `followers` the ones that follow another by momentum.

    Args:
        towers: every tower by its name in the recipe, as training runs them (those with stored
            features included).
        objectives: the distillers with their arrows.
        steps_per_epoch, total_steps: in optimizer steps; what schedules of the recipe refer to.
        num_rows: of the data set; None for streams.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower | MomentumTower],
        objectives: Sequence[Objective],
        *,
        steps_per_epoch: int,
        total_steps: int,
        num_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {
                name: tower
                for name, tower in towers.items()
                if isinstance(tower, Tower) and not tower.is_frozen
            }
        )
        self.followers = nn.ModuleDict(
            {name: tower for name, tower in towers.items() if isinstance(tower, MomentumTower)}
        )
        # A plain dict in a tuple keeps the frozen towers out of nn.Module's registration.
        self._frozen = (
            {
                name: tower
                for name, tower in towers.items()
                if isinstance(tower, Tower) and tower.is_frozen
            },
        )
        self.distillers = nn.ModuleDict(
            {objective.name: objective.distiller for objective in objectives}
        )
        self.objectives = tuple(objectives)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        for objective in objectives:
            # Widths of the first call; the others' are the same.
            call = objective.arrow.calls[0]
            assert call.student is not None
            student = self._width(call.student)
            teacher = None if call.teacher is None else self._width(call.teacher)
            keys = {"num_rows": num_rows} if counts_rows(objective.distiller) else {}
            objective.distiller.setup(student, teacher, **keys)

    @property
    def frozen(self) -> dict[str, Tower]:
        """Towers of which nothing learns."""
        return self._frozen[0]

    def tower(self, name: str) -> Tower | MomentumTower:
        """Any tower by its name in the recipe."""
        for group in (self.towers, self.followers, self.frozen):
            if name in group:
                return group[name]  # type: ignore[return-value]
        raise KeyError(name)

    def input_keys(self) -> dict[str, str]:
        """Keys of `Batch.inputs` that a step reads -> the tower that reads them."""
        return {
            address.input_key: address.tower
            for objective in self.objectives
            for address in objective.arrow.addresses()
        }

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Loss of this rank's rows at an optimizer step. Each tower encodes each view once."""
        outputs: dict[tuple[str, str], Tensor] = {}

        def read(side: Side | None) -> Tensor | tuple[Tensor, ...] | None:
            if side is None:
                return None
            return (
                self._output(side, batch, outputs)
                if isinstance(side, Address)
                else tuple(self._output(a, batch, outputs) for a in side)
            )

        progress = Progress(step, self.steps_per_epoch, self.total_steps)
        offered = {"labels": batch.labels, "indices": batch.indices, "progress": progress}
        loss = torch.zeros((), device=batch.indices.device)
        terms = {}
        for objective in self.objectives:
            calls = [
                objective.distiller(read(call.student), read(call.teacher), **offered)
                for call in objective.arrow.calls
            ]
            term = calls[0] if len(calls) == 1 else torch.stack(calls).mean()
            terms[objective.name] = term.detach()
            loss = loss + progress.value(objective.weight) * term
        return StepOutput(loss, terms)

    def commit(self, step: int) -> None:
        """After an optimizer step: queues and centres take in what they saw, momentum towers
        follow."""
        progress = Progress(step, self.steps_per_epoch, self.total_steps)
        for objective in self.objectives:
            objective.distiller.commit(progress)
        for name, follower in self.followers.items():
            assert isinstance(follower, MomentumTower)
            source = self.tower(follower.follows)
            assert isinstance(source, Tower), f"{name} follows another follower"
            follower.follow(source, step, self.steps_per_epoch, self.total_steps)

    def discard(self) -> None:
        """After a step that was skipped: forget what the distillers staged."""
        for objective in self.objectives:
            objective.distiller.discard()

    def to(self, *args: Any, **kwargs: Any) -> Composition:
        """Move everything, the frozen towers too."""
        super().to(*args, **kwargs)
        for tower in self.frozen.values():
            tower.to(*args, **kwargs)
        return self

    def encode(self, address: Address, inputs: object) -> Tensor:
        """One output of one tower, `[B, D]`; without gradient for towers that do not learn."""
        tower = self.tower(address.tower)
        with torch.set_grad_enabled(torch.is_grad_enabled() and address.tower in self.towers):
            features = tower.features(inputs)
            return features if address.output == "backbone" else tower.project(features)

    def _output(
        self, address: Address, batch: Batch, outputs: dict[tuple[str, str], Tensor]
    ) -> Tensor:
        tower = self.tower(address.tower)
        with torch.set_grad_enabled(torch.is_grad_enabled() and address.tower in self.towers):
            key = (address.input_key, address.output)
            if key not in outputs:
                features_key = (address.input_key, "backbone")
                if features_key not in outputs:
                    outputs[features_key] = tower.features(batch.inputs[address.input_key])
                if address.output == "head":
                    outputs[key] = tower.project(outputs[features_key])
            return outputs[key]

    def _width(self, side: Side) -> Widths:
        # An address is itself a tuple, so it is asked for first.
        return (
            self.width_of(side)
            if isinstance(side, Address)
            else tuple(self.width_of(address) for address in side)
        )

    def width_of(self, address: Address) -> int:
        """Width of an output."""
        tower = self.tower(address.tower)
        return tower.feature_width if address.output == "backbone" else tower.width
