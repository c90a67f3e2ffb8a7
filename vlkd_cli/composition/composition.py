"""Towers connected by distillers: what is trained. Knows which tower encodes what and what is
compared with what; not optimizers or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.composition.chunks import Reads, refuse_batch_statistics
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.composition.passes import Rows, encode, input_key, plan
from vlkd_cli.data.batch import Batch
from vlkd_cli.data.views import CAPTION_KEYS, keys_of_text
from vlkd_cli.distillers.distiller import Distiller, Widths, counts_rows
from vlkd_cli.distillers.negatives import Negatives
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import Address, Arrow, Call, Side
from vlkd_cli.recipe.contract import Contract
from vlkd_cli.recipe.modality import is_named
from vlkd_cli.recipe.objectives import listed, negative_side, uses
from vlkd_cli.recipe.types import ModalityName, Progress, Schedulable
from vlkd_cli.towers.named_modules import NamedModules
from vlkd_cli.towers.tower import Tower


class StepOutput(NamedTuple):
    """The weighted sum of the terms, with its graph, and each term by name, without."""

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(NamedTuple):
    """One distiller with the arrow between what it compares."""

    name: str
    distiller: Distiller
    arrow: Arrow
    weight: Schedulable = 1.0
    contract: Contract | None = None

    def selected(self, call: Call) -> list[Address]:
        """The addresses that it takes flattened over samples, the student's first."""
        if self.contract is None:
            return []
        return [one for one, output in uses(self.contract, call) if output.kind == "selected"]


class SetupError(RecipeError):
    """A distiller that its outputs do not fit; `number` is its position among the objectives."""

    def __init__(self, number: int, call: Call, text: str) -> None:
        sides = {"student": listed(call.student), "teacher": listed(call.teacher)}
        named = [
            f"{side} {' and '.join(map(str, found))}" for side, found in sides.items() if found
        ]
        super().__init__(f"{', '.join(named)}: {text}")
        self.number = number


class Composition(nn.Module):
    """All towers of a recipe and the objectives between them.

    Frozen towers are held outside the module tree: they are not parameters of this module, are not
    in its state dict, not moved by DDP, and always run without gradient. `towers` holds the ones
    that are trained; `followers` the ones that follow another by momentum.

    Args:
        towers: every tower by its name in the recipe, as training runs them (those with cached
            features included).
        objectives: the distillers with their arrows.
        num_rows: of the data set; None for streams.
        chunk: pictures or texts whose activations are held at a time, which changes neither loss
            nor gradients; None: the whole batch's.

    Raises:
        RecipeError: with a chunk, a tower has trainable batch norms.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower | MomentumTower],
        objectives: Sequence[Objective],
        *,
        num_rows: int | None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self._known_reads: dict[tuple[str, str], Reads] = {}
        self.towers = NamedModules(
            {
                name: tower
                for name, tower in towers.items()
                if isinstance(tower, Tower) and not tower.is_frozen
            }
        )
        self.followers = NamedModules(
            {name: tower for name, tower in towers.items() if isinstance(tower, MomentumTower)}
        )
        # A plain dict in a tuple hides the frozen towers from nn.Module's registration.
        self._frozen = (
            {
                name: tower
                for name, tower in towers.items()
                if isinstance(tower, Tower) and tower.is_frozen
            },
        )
        self.distillers = NamedModules(
            {objective.name: objective.distiller for objective in objectives}
        )
        self.objectives = tuple(objectives)
        self.passes = plan(
            address for objective in objectives for address in objective.arrow.addresses()
        )
        for number, objective in enumerate(objectives):
            # Widths of the first call; the others' are the same.
            call = objective.arrow.calls[0]
            assert call.student is not None
            teacher = None if call.teacher is None else self._widths(call.teacher)
            keys = {"num_rows": num_rows} if counts_rows(objective.distiller) else {}
            try:
                objective.distiller.setup(self._widths(call.student), teacher, **keys)
            except RecipeError as error:
                raise SetupError(number, call, str(error)) from error
        if chunk is not None:
            for name, tower in (*self.towers.items(), *self.followers.items()):
                refuse_batch_statistics(name, tower)

    @property
    def frozen(self) -> dict[str, Tower]:
        """Towers without trainable parameters."""
        return self._frozen[0]

    @property
    def all_towers(self) -> dict[str, Tower | MomentumTower]:
        """Every tower by its name in the recipe."""
        every: dict[str, Any] = {**self.towers, **self.followers, **self.frozen}
        return every

    def tower(self, name: str) -> Tower | MomentumTower:
        """Any tower by its name in the recipe."""
        return self.all_towers[name]

    def input_keys(self, episode: bool = False) -> dict[str, str]:
        """Keys of `Batch.inputs` that a step reads, or the start of an episode -> the tower whose
        input it is. A follower reads the followed tower's."""
        towers = self.all_towers
        return {
            input_key(towers, address.tower, address.input): _reader(towers, address.tower)
            for objective in self.objectives
            for address in (
                objective.arrow.episode_addresses() if episode else objective.arrow.addresses()
            )
        }

    @property
    def reads_caption_keys(self) -> bool:
        """Whether a distiller compares captions as such."""
        return bool(self.negative_texts) or any(
            "caption_keys" in each.distiller.wants for each in self.objectives
        )

    @property
    def negative_texts(self) -> frozenset[str]:
        """The inputs of text towers that distillers read as negatives."""
        return frozenset(
            address.input
            for objective in self.objectives
            for address in objective.arrow.negatives
            if is_named(self._modality(address))
        )

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the data that distillers read, and as what."""
        found: dict[str, str] = {}
        for name, each in ((each.name, each.distiller) for each in self.objectives):
            for column, kind in each.columns.items():
                if found.setdefault(column, kind) != kind:
                    raise RecipeError(
                        f"distiller '{name}': column '{column}' is a grade in one distiller and"
                        " compared in another. Write it to two columns."
                    )
        return found

    def forward(
        self, batch: Batch, progress: Progress, outputs: Mapping[Address, Rows] | None = None
    ) -> StepOutput:
        """Loss of this rank's rows at a step. Each tower encodes each of its inputs once.

        Args:
            outputs: of the towers; by default what they encode of the batch.
        """
        found = outputs
        if found is None:
            found = encode(
                self.passes,
                self.all_towers,
                self.towers,
                batch,
                progress,
                self.chunk,
                self._known_reads,
            )
        loss = torch.zeros((), device=batch.indices.device)
        terms = {}
        offered = {
            "labels": batch.labels,
            "targets": batch.targets,
            "caption_keys": batch.inputs.get(CAPTION_KEYS),
            "columns": batch.columns,
            "indices": batch.indices,
            "progress": progress,
        }
        for objective in self.objectives:
            # Call the distiller directly from here, so that a traceback shows this line and the
            # distiller.
            calls = [
                objective.distiller(
                    student,
                    teacher,
                    samples=samples,
                    negatives=self._negatives(objective, call, found, batch),
                    **offered,
                )
                for call in objective.arrow.calls
                for student, teacher, samples in [_delivered(objective, call, found)]
            ]
            term = calls[0] if len(calls) == 1 else torch.stack(calls).mean()
            terms[objective.name] = term.detach()
            loss = loss + progress.value(objective.weight) * term
        return StepOutput(loss, terms)

    def commit(self, progress: Progress) -> None:
        """After an optimizer step: queues and centers take in what they saw, followers follow."""
        for objective in self.objectives:
            objective.distiller.commit(progress)
        for name, follower in self.followers.items():
            assert isinstance(follower, MomentumTower)
            source = self.tower(follower.follows)
            assert isinstance(source, Tower), f"{name} follows another follower"
            follower.follow(source, progress)

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

    def _negatives(
        self, objective: Objective, call: Call, found: Mapping[Address, Rows], batch: Batch
    ) -> tuple[Negatives, ...]:
        several = []
        for address in objective.arrow.negatives:
            keys = row_keys = None
            if is_named(self._modality(address)):
                keys = batch.inputs[keys_of_text(address.input)]
                row_keys = batch.inputs[CAPTION_KEYS]
            side = negative_side(call, self._modality, address)
            values = found[address].values
            several.append(Negatives(values, side, keys, row_keys))  # type: ignore[arg-type]
        return tuple(several)

    def _modality(self, address: Address) -> ModalityName:
        tower = self.tower(address.tower)
        return (tower.tower if isinstance(tower, MomentumTower) else tower).modality

    def _widths(self, side: Side) -> Widths:
        if isinstance(side, Address):
            return self.width_of(side)
        return tuple(self.width_of(address) for address in side)

    def width_of(self, address: Address) -> int:
        """Width of an output."""
        return self.tower(address.tower).width_of(address.output)


class _Delivered(NamedTuple):
    """The outputs as a distiller receives them; `samples` maps each selected position to its
    sample."""

    student: Tensor | tuple[Tensor, ...]
    teacher: Tensor | tuple[Tensor, ...] | None
    samples: Tensor | None


def _delivered(objective: Objective, call: Call, found: Mapping[Address, Rows]) -> _Delivered:
    selected = objective.selected(call)

    def read(side: Side) -> Tensor | tuple[Tensor, ...]:
        # An address is itself a tuple, so it is asked for first.
        if isinstance(side, Address):
            return found[side].flat() if side in selected else found[side].values
        return tuple(found[one].flat() if one in selected else found[one].values for one in side)

    assert call.student is not None
    return _Delivered(
        read(call.student),
        None if call.teacher is None else read(call.teacher),
        found[selected[0]].samples() if selected else None,
    )


def _reader(towers: Mapping[str, Tower | MomentumTower], name: str) -> str:
    tower = towers[name]
    return tower.follows if isinstance(tower, MomentumTower) else name
