"""The distillers of a recipe, and the composition of the towers that they connect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from vlkd_cli.composition.composition import Composition, Objective, SetupError
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.widths import AtWidths
from vlkd_cli.engine.determinism import seed_everything
from vlkd_cli.engine.inputs import Towers
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import Address, arrow_of
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.contract import contract_of
from vlkd_cli.recipe.messages import Path as KeyPath
from vlkd_cli.recipe.messages import Problem, report
from vlkd_cli.recipe.objectives import check_widths
from vlkd_cli.recipe.schema import DistillerSpec, Recipe


def build_composition(
    recipe: Recipe,
    towers: Towers,
    *,
    num_rows: int | None = None,
    origins: Mapping[KeyPath, str] = MappingProxyType({}),
) -> Composition:
    """The towers connected by the recipe's distillers.

    Args:
        num_rows: of the data set; None for streams.
        origins: `file:line` of the recipe's keys, for messages.

    Raises:
        RecipeError: outputs that a distiller cannot compare, with its key in the recipe and its
        addresses.
    """
    objectives = build_objectives(recipe)
    problems = list(_unequal_widths(recipe, objectives, towers))
    problems += _start_from_towers(objectives, towers)
    if not problems:
        try:
            return Composition(towers, objectives, num_rows=num_rows, chunk=recipe.train.chunk)
        except SetupError as error:
            problems = [Problem(("distillers", error.number), str(error))]
    raise RecipeError(report(origins, problems, "the recipe"))


def build_objectives(recipe: Recipe) -> list[Objective]:
    """The distillers with the arrows between what they compare; a name used twice gets a number."""
    objectives: list[Objective] = []
    seed_everything(recipe.train.seed, "distillers")
    for spec in recipe.distillers:
        arrow = arrow_of(recipe, spec)
        base = spec.name.split(":")[-1]
        taken = {objective.name for objective in objectives}
        name = next(
            n
            for n in [base, *(f"{base}_{k}" for k in range(2, len(recipe.distillers) + 2))]
            if n not in taken
        )
        objectives.append(
            Objective(
                name,
                _distiller(spec),
                arrow,
                spec.weight,
                contract_of(spec.name),
            )
        )
    return objectives


def _distiller(spec: DistillerSpec) -> Distiller:
    inner = [make("distiller", spec.name, spec.keys) for _ in spec.widths or [0]]
    return AtWidths(inner, spec.widths, spec.width_weights) if spec.widths else inner[0]


def _start_from_towers(objectives: list[Objective], towers: Towers) -> Iterator[Problem]:
    """Set objectives with `logit_scale: from towers` to the start that both towers agree on."""
    for number, objective in enumerate(objectives):
        distiller = objective.distiller
        if not getattr(distiller, "starts_from_towers", False):
            continue
        found = {
            getattr(getattr(tower.encoder, "origin", None), "start", None)
            for address in objective.arrow.addresses()
            for tower in [towers[address.tower]]
        }
        start = next(iter(found))
        if len(found) > 1 or start is None:
            reason = "differ in it" if None not in found else "are not halves of a dual encoder"
            yield Problem(
                ("distillers", number, "logit_scale"),
                f"'from towers': its towers {reason}. Write a number.",
            )
        else:
            distiller.start_from(*start)  # type: ignore[operator]


def _unequal_widths(
    recipe: Recipe, objectives: list[Objective], towers: Towers
) -> Iterator[Problem]:
    """Outputs that a distiller compares directly though their widths differ."""

    def width_of(address: Address) -> int:
        return towers[address.tower].width_of(address.output)

    for number, (spec, objective) in enumerate(zip(recipe.distillers, objectives, strict=True)):
        yield from check_widths(recipe, spec, objective.arrow, ("distillers", number), width_of)
